"""`examine` on the road: whose model, on which rows, what it leaves, and what it refuses."""

import json
import os
import re
import shutil

import pytest
from conftest import SMALLEST, changed, main, sentences, write_rows

PREFERRED = [
    {"prompt": f"Translate: Das {i}. Kind liest.", "chosen": f"Child number {i} reads.", "rejected": f"Kind {i} liest."}
    for i in range(60, 90)
]


def copied(finished, name, *stages):
    """A copy of the finished run under another name, with those of its stages."""
    place = finished.parent.parent / name / "translation"
    shutil.rmtree(place.parent, ignore_errors=True)
    for stage in stages:
        shutil.copytree(finished / stage, place / stage)
    return place


def found_in(place):
    return json.loads((place / "examine" / "examine.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def examined(session_home, finished):
    """A finished run with the examination of its reward model, and what the console said. Nobody may change it."""
    import contextlib
    import io

    place = copied(finished, "examined", "sft", "reward", "ppo", "answers", "evaluate", "report")
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as out:
        patch.chdir(session_home)
        assert main(["examine", "translation", "--run", "examined"]) == 0
    return place, out.getvalue()


def test_a_runs_model_is_examined_on_what_the_run_held_out(examined):
    place, _ = examined
    found, record = found_in(place), json.loads((place / "reward" / "done.json").read_text(encoding="utf-8"))
    assert found["rows"]["comparisons"] == record["metrics"]["held_out_comparisons"]
    assert found["accuracy"]["overall"]["value"] == record["metrics"]["accuracy"]["value"]
    assert {"better answers", "worse answers", "references", "silence"} <= found["answers"].keys()
    assert {edit["harmful"] for edit in found["edits"]} == {True, False}
    assert found["truth"]["ppo"]["count"] == 6, "of each of six prompts"
    assert found["reading"]["rows"][0]["answers"].keys() == {"better", "worse"}
    assert found["baselines"]


def test_of_several_reward_models_the_first_is_examined_and_the_console_says_so(finished, home, capsys):
    place = copied(finished, "several_examined", "sft", "reward")
    shutil.copytree(place / "reward" / "adapter", place / "reward" / "member-1" / "adapter")
    changed(place / "reward" / "done.json", members=[{}, {}])
    assert main(["examine", "translation", "--run", "several_examined"]) == 0
    assert "the run has 2 reward models, which score together; this examines the first" in capsys.readouterr().out
    assert found_in(place)["accuracy"]["overall"]["count"]


def test_the_table_is_no_wider_than_a_terminal_and_tells_where_the_page_is(examined):
    _, said = examined
    assert "held-out accuracy" in said
    assert "examined: runs/examined/translation/examine" in said
    assert all(len(line) <= 100 for line in said.splitlines() if line.startswith(("held", "  ", "rank")))


def test_the_page_loads_nothing_and_runs_nothing(examined):
    page = (examined[0] / "examine" / "index.html").read_text(encoding="utf-8")
    assert not re.search("<script|https?:|xlink", page)
    assert page.count("<svg") == page.count("</svg>") == 2
    assert "What a difference of scores promises" in page
    assert "Which words it looks at" in page


def test_the_report_has_the_same_content_until_the_reward_model_is_another(examined, home, capsys):
    place, _ = examined
    other = home / "runs" / "examined2" / "translation"
    shutil.rmtree(other.parent, ignore_errors=True)
    shutil.copytree(place, other)
    again = ["report", "translation", "--run", "examined2", "--data", "pairs.jsonl", "--force"]
    assert main([*again, *SMALLEST]) == 0
    assert "The reward model, examined" in (other / "report" / "index.html").read_text(encoding="utf-8")
    changed(other / "reward" / "done.json", finished="2030-01-01T00:00:00Z")
    assert main([*again, *SMALLEST]) == 0
    assert "The reward model, examined" not in (other / "report" / "index.html").read_text(encoding="utf-8")


def test_other_data_are_examined_whole_and_the_page_says_so(finished, home, capsys):
    place = copied(finished, "other_rows", "sft", "reward")
    write_rows(home / "preferred.jsonl", PREFERRED)
    assert main(["examine", "translation", "--run", "other_rows", "--data", "preferred.jsonl"]) == 0
    assert "preferred.jsonl is not what the run was made with" in capsys.readouterr().out
    found = found_in(place)
    assert found["rows"]["comparisons"] == len(PREFERRED)
    assert not found["truth"], "the run has not been evaluated"


def test_ratings_are_correlated_with_and_their_answers_edited(finished, home, capsys):
    place = copied(finished, "rated_rows", "sft", "reward")
    rows = [{"prompt": row["prompt"], "completion": row["chosen"], "score": i % 7} for i, row in enumerate(PREFERRED)]
    write_rows(home / "examined_ratings.jsonl", rows)
    assert main(["examine", "translation", "--run", "rated_rows", "--data", "examined_ratings.jsonl"]) == 0
    found = found_in(place)
    assert found["correlation"]["held_out_ratings"] == len(rows)
    assert "accuracy" not in found
    assert found["answers"]["better answers"]["count"] == len(rows)
    assert found["reading"]["rows"][0]["answers"].keys() == {"better"}
    assert "rank correlation with ratings" in capsys.readouterr().out
    assert "Beside the ratings" in (place / "examine" / "index.html").read_text(encoding="utf-8")


def test_a_model_from_elsewhere_needs_no_run(finished, home):
    settings = ["reward.model=runs/t/translation/reward", "model.quantization=none"]
    assert main(["examine", "translation", "--run", "stranger", "--data", "pairs.jsonl", *settings]) == 0
    assert found_in(home / "runs" / "stranger" / "translation")["rows"]["comparisons"] > 0


def test_a_model_that_recipes_share_is_examined_on_the_rows_of_all_with_each_as_a_part(home):
    joint = "translation+dialogue"
    chats = [{"dialog": [f"Hello, I am {i}.", f"Hello, {i}."]} for i in range(30)]
    write_rows(home / "examined_chats.jsonl", chats)
    sources = ("--data", "pairs.jsonl+examined_chats.jsonl")
    assert main(["reward", joint, "--run", "examined_joint", *sources, *SMALLEST]) == 0
    assert main(["examine", joint, "--run", "examined_joint"]) == 0
    found = found_in(home / "runs" / "examined_joint" / joint)
    parts = found["accuracy"]["parts"]["recipe"]
    assert parts.keys() == {"translation", "dialogue"}
    assert sum(part["count"] for part in parts.values()) == found["rows"]["comparisons"]


def refused(capsys, *arguments):
    assert main(["examine", "translation", *arguments]) == 2
    return capsys.readouterr().err


def test_a_run_without_a_reward_model_is_told_in_a_sentence(finished, home, capsys):
    copied(finished, "unrewarded", "sft")
    assert "has no reward model yet; make it with `" in refused(capsys, "--run", "unrewarded")
    copied(finished, "unlearned", "sft", "ppo")
    assert "programmatic terms alone (terms.learned=0)" in refused(capsys, "--run", "unlearned")
    other = copied(finished, "unlearned_rloo", "sft", "ppo")
    (other / "ppo").rename(other / "rloo")
    assert "programmatic terms alone (terms.learned=0)" in refused(capsys, "--run", "unlearned_rloo")
    assert "nothing has been trained" in refused(capsys, "--run", "no_such_run")


def test_settings_that_have_no_effect_are_refused(finished, home, capsys):
    assert "sft.max_steps has no effect on `examine`" in refused(capsys, "--run", "t", "sft.max_steps=3")
    assert "model.dtype has no effect on `examine`" in refused(capsys, "--run", "t", "model.dtype=float32")
    assert "reward.learning_rate has no effect" in refused(capsys, "reward.model=x", "reward.learning_rate=1")
    given = refused(capsys, "--run", "t", "reward.model=runs/t/translation/reward")
    assert "has a reward model of its own; name another run" in given


def test_an_examination_goes_elsewhere_where_the_run_can_only_be_read(finished, home, tmp_path, monkeypatch, capsys):
    place = copied(finished, "read_only", "sft", "reward")
    before = sorted(place.rglob("*"))
    command = ["examine", "translation", "--run", "read_only"]
    access = os.access
    monkeypatch.setattr("os.access", lambda path, mode: "read_only" not in str(path) and access(path, mode))
    assert main(command) == 2
    assert "nothing can be written into runs/read_only/translation; name a folder (--to …)" in capsys.readouterr().err
    for _ in range(2):  # the second replaces the first
        assert main([*command, "--to", str(tmp_path / "found" / "here")]) == 0
    assert f"examined: {tmp_path / 'found' / 'here'}" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "found" / "here").iterdir()) == ["examine.json", "index.html"]
    assert sorted(place.rglob("*")) == before


def test_an_examination_takes_no_folder_that_holds_something_else(finished, home, tmp_path, capsys):
    copied(finished, "elsewhere_examined", "sft", "reward")
    (tmp_path / "notes.txt").write_text("mine")
    for place in (tmp_path, tmp_path / "notes.txt"):
        assert main(["examine", "translation", "--run", "elsewhere_examined", "--to", str(place)]) == 2
        assert f"{place} holds something else than an examination; name another folder" in capsys.readouterr().err


def test_data_that_have_changed_since_are_refused_before_anything_is_loaded(finished, home, capsys):
    copied(finished, "moved_on", "sft", "reward")
    rows = (home / "pairs.jsonl").read_text(encoding="utf-8")
    try:
        write_rows(home / "pairs.jsonl", sentences(50))
        assert "no longer has the rows" in refused(capsys, "--run", "moved_on")
    finally:
        (home / "pairs.jsonl").write_text(rows, encoding="utf-8")
