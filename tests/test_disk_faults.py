"""Flipped bits and failing writes on the whole road, in short; `tests/faults` does it longer."""

import shutil

import pytest
from faults import flips, writes


def test_a_flipped_bit_is_told_at_every_door_that_reads_its_file(tmp_path):
    found = list(flips.outcomes(tmp_path, set(), flips=8))
    assert [outcome for outcome in found if outcome.result != "told"] == []
    assert len(found) == 8


@pytest.mark.skipif(not shutil.which("cc"), reason="it needs a C compiler")
def test_a_failing_disk_is_told_and_the_same_command_goes_on_to_the_same_bytes(tmp_path):
    found = list(writes.outcomes(tmp_path, set(), rounds=1, tries=3))
    assert [outcome for outcome in found if outcome.result == "fell"] == []
    assert len(found) == 4
    assert sum(outcome.result == "told" for outcome in found) > 0
    assert found[-1].detail == "every byte is the same"
