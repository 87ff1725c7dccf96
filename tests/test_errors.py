"""Errors are one sentence of at most 300 characters, and what to do survives the cut."""

import contextlib
import os
import tempfile
from pathlib import Path

import pytest

from rlrecipes.errors import LONGEST, OwnCodeError, UserError, own_code


@pytest.mark.parametrize(
    ("sentence", "end"),
    [
        ("a is damaged; delete it", "a is damaged; delete it"),
        ("a\n  is   damaged;\tdelete it", "a is damaged; delete it"),
        (f"the folder {'a' * 500} is no model; name another with --model", "…; name another with --model"),
        (f"{'x' * 280}; one; and then another hint; give it again", "; give it again"),
        (f"cannot do it; {'give ' * 100}it again", "it again"),
        ("a" * 301, "a"),
    ],
)
def test_a_long_sentence_loses_its_middle_and_keeps_what_to_do(sentence, end):
    error = str(UserError(sentence))
    assert len(error) <= LONGEST
    assert error.endswith(end)
    assert error[:40] == " ".join(sentence.split())[:40]
    assert len(error) >= LONGEST - 1 or "…" not in error  # a space may go


def test_a_sentence_of_just_300_characters_stays_whole():
    assert str(UserError("a" * 300)) == "a" * 300


def go(place):
    os.chdir(place)


def fail(place):
    os.chdir(place)
    raise SystemExit


def vanish(place):
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)


@pytest.mark.parametrize("act", [go, fail, vanish])
def test_own_code_that_changes_the_working_directory_changes_it_for_itself_alone(act, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with contextlib.suppress(OwnCodeError), own_code():
        act("/")
    assert Path.cwd() == tmp_path


def test_own_code_runs_in_a_working_directory_that_somebody_removed(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with own_code():
        pass
    monkeypatch.chdir(tmp_path)
