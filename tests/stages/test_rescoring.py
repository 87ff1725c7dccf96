"""Answers are given once, and scored as often as one likes."""

import json
import shutil

import pytest
from conftest import SMALLEST, last_of_each

from rlrecipes.__main__ import main
from rlrecipes.policy import answers
from rlrecipes.policy.answers import FILE, Answer, read_answers, write_answers
from rlrecipes.recipe import Example, Message

JUDGE = "def short(prompt, answer, references):\n    return -len(answer)\n"


@pytest.fixture
def copy(finished, home):
    """A copy of the finished run, under a name of its own."""

    def made(name, *without):
        folder = home / "runs" / name / "translation"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(finished, folder, ignore=shutil.ignore_patterns(*without))
        return folder

    return made


@pytest.fixture
def mute(monkeypatch):
    """No policy can say a word."""

    def sample(*arguments, **keywords):
        raise AssertionError("a policy answered")

    monkeypatch.setattr(answers, "sample", sample)


def evaluated(name, *arguments):
    return main(
        ["evaluate", "translation", "--run", name, "--data", "pairs.jsonl", *last_of_each([*SMALLEST, *arguments])]
    )


def test_another_judge_scores_the_answers_that_are_there(copy, home, mute, capsys):
    folder = copy("rescored")
    (home / "brevity.py").write_text(JUDGE)
    before, kept = (folder / "evaluate" / "samples.jsonl").read_text(), (folder / "answers" / FILE).stat().st_mtime_ns
    assert evaluated("rescored", "evaluate.judge=brevity.py:short") == 2
    assert 'evaluate.judge = "auto" where you now have "brevity.py:short"' in capsys.readouterr().err
    assert evaluated("rescored", "evaluate.judge=brevity.py:short", "--force") == 0
    assert "answers: done already" in capsys.readouterr().out
    assert (folder / "answers" / FILE).stat().st_mtime_ns == kept
    for old, new in zip(
        before.splitlines(), (folder / "evaluate" / "samples.jsonl").read_text().splitlines(), strict=True
    ):
        for policy, given in json.loads(new)["policies"].items():
            assert given.pop("judge") == -len(given["answer"])
            assert given == json.loads(old)["policies"][policy]


def test_other_prompts_need_new_answers_which_force_gives(copy, capsys):
    folder = copy("fewer")
    few = ("evaluate.limit=4", "evaluate.policies=base,sft,ppo")
    assert evaluated("fewer", *few) == 2
    assert "answers was made with evaluate.limit = 6 where you now have 4" in capsys.readouterr().err
    assert evaluated("fewer", *few, "--force") == 0
    assert len((folder / "answers" / FILE).read_text().splitlines()) == 4
    assert json.loads((folder / "evaluate" / "done.json").read_text())["examples"] == 4


def test_an_evaluation_alone_asks_for_answers_first(copy, finished):
    folder = copy("alone", "answers", "evaluate", "report")
    assert evaluated("alone") == 0
    for stage, name in (("answers", FILE), ("evaluate", "samples.jsonl")):
        assert (folder / stage / name).read_bytes() == (finished / stage / name).read_bytes()


def test_answers_read_back_as_they_were_written(tmp_path):
    example = Example((Message("user", "Wie?"),), ("So.",))
    given = {"sft": {"greedy": [Answer("a\u2028b", True)], "sampled": [Answer("", False, 0.1 + 0.2)]}}
    write_answers(tmp_path / FILE, [example], given)
    assert read_answers(tmp_path / FILE) == given
