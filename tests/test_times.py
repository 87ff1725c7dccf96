"""The time plan's benchmark: what it says of plans that are off, and what it leaves for the page."""

import pytest

from benchmarks import times
from benchmarks.numbers import block
from rlrecipes.run.folder import read_json


@pytest.mark.parametrize(
    ("planned", "taken", "wrong"), [(14, 10, False), (16, 10, True), (7, 10, False), (6, 10, True), (90, 9, False)]
)
def test_a_plan_is_off_beyond_a_factor_of_one_and_a_half_in_phases_that_last(planned, taken, wrong):
    assert times.off(times.row("a run", "sft", planned, taken)) == wrong
    assert not times.off(times.row("a run", times.WHOLE, planned, taken))


def test_no_ratio_is_told_of_a_phase_that_is_short():
    said = times.table([times.row("a run", "sft", 12, 10), times.row("a run", "judge", 3, 2)])
    assert said.startswith("a run:\n\n| phase |")
    assert "| sft | 12 | 10 | 1.20 |" in said
    assert "| judge | 3 | 2 | under 10 s |" in said


def test_a_measurement_takes_the_place_of_its_own_rows_and_leaves_those_of_other_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for recipe, taken in (("translation", 20.0), ("dialogue", 30.0), ("translation", 25.0)):
        found = {"sft": 22.0}, {"sft": taken}
        monkeypatch.setattr(times, "run", lambda recipe, profile, weights, found=found: found)
        times.measure(recipe, None)
    rows = read_json(times.OUT / "done.json")["rows"]
    assert [(row["run"], row["taken_s"]) for row in rows] == [
        ("dialogue, embedded base", 30),
        ("translation, embedded base", 25),
    ]
    record = block("time-bench").read(tmp_path / "runs")
    assert "dialogue, embedded base:\n\n| phase |" in block("time-bench").markdown({"command": "`x`", **record})
