"""Errors are one sentence of at most 300 characters, and what to do survives the cut."""

import pytest

from rlrecipes.errors import LONGEST, UserError


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
