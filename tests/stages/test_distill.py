"""`distill` draws answers, keeps the best of each prompt by the whole reward, and goes on with SFT on these, beside PPO."""

import io
import json
import math
import os
import signal

import pytest
import torch
from conftest import SHORTEST, SMALLEST_BASE, main, write_rows
from kills import INTERRUPTED

from rlrecipes import run_recipe
from rlrecipes.errors import UserError
from rlrecipes.policy import best_answers as drawing
from rlrecipes.profile import load_profile
from rlrecipes.run.checkpoint import Checkpoints, trainable
from rlrecipes.stages import distill as learning

DISTILL = (
    *(s for s in (*SMALLEST_BASE, *SHORTEST) if not s.startswith("ppo.") or s.startswith("ppo.response_length")),
    *("run.algorithms=distill", "evaluate.policies=all", "distill.max_steps=4", "distill.learning_rate=1e-2"),
    *("distill.per_device_train_batch_size=4", "distill.logging_steps=1", "distill.num_generations=3"),
    *("distill.local_rollout_forward_batch_size=12", "distill.anyway=true", "distill.limit=40"),
)
OWN = ("--data", "pairs.jsonl")


def records(folder):
    return {path.parent.name: json.loads(path.read_text()) for path in folder.glob("*/done.json")}


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def refused(capsys, *arguments):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("error: ") == error.partition("error: ")[2].count("\n") == 1
    return error


@pytest.fixture(scope="module")
def road(session_home):
    """`runs/distill/translation`, all stages done with `distill` alone. Nobody may change it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(session_home)
        assert main(["run", "translation", "--run", "distill", *OWN, *DISTILL]) == 0
    return session_home / "runs" / "distill" / "translation"


def test_a_run_does_with_distill_alone_and_compares_its_policy_with_sft(road):
    found = records(road)
    assert found.keys() == {"sft", "reward", "distill", "answers", "evaluate", "report"}
    assert list(found["evaluate"]["metrics"]) == ["base", "sft", "best4", "best16", "distill"]
    assert found["evaluate"]["kl"]["distill"]["value"] is not None
    assert {"gain", "reward_gain"} <= found["evaluate"]["comparisons"]["distill_over_sft"].keys()
    assert found["distill"]["settings"]["terms.learned"] == 1.0, "it stands on the reward"
    assert found["distill"]["reward_code"]


def test_the_answer_with_the_highest_reward_is_kept_for_each_prompt_with_its_checksum(road):
    rows, record = lines(road / "distill" / "answers.jsonl"), records(road)["distill"]
    assert len(rows) == 40
    assert all(len(row["scores"]) == 3 for row in rows)
    assert "answers.jsonl" in record["files"]
    drawn = record["drawn"]
    assert drawn["answers"] == 120
    assert drawn["best"] == pytest.approx(sum(max(row["scores"]) for row in rows) / 40)
    assert drawn["reward"] == pytest.approx(sum(sum(row["scores"]) for row in rows) / 120)
    assert record["metrics"]["best_reward"] > record["metrics"]["reward"]


def test_it_learns_the_answers_that_it_kept_behind_their_prompts_and_begins_at_sft(road, home, monkeypatch):
    seen = []

    def stop(settings, seed, model, tokenizer, rows, aside, *others):
        rounded = {name: weight.clone() for name, weight in trainable(model).items()}
        seen.append((rows, aside, usual(settings, seed, model, tokenizer, rows, aside, *others), rounded))
        return seen[0][2]

    usual = learning.sft_trainer
    monkeypatch.setattr(learning, "sft_trainer", stop)
    run = (
        "distill",
        "translation",
        "--run",
        "distill-rows",
        "--from",
        "distill",
        *OWN,
        *DISTILL,
        "distill.max_steps=1",
    )
    assert main([*run, "distill.learning_rate=1e-12"]) == 0
    (rows, aside, trainer, start), kept = seen[0], lines(road / "distill" / "answers.jsonl")
    assert not aside
    assert [row.answer for row in rows] == [row["tokens"] for row in kept]
    assert trainer.train_dataset[0]["input_ids"] == [*rows[0].prompt, *rows[0].answer]
    for name, weight in trainable(trainer.model).items():
        assert torch.allclose(weight, start[name], atol=1e-9), name


def test_report_chat_export_runs_and_compare_take_it(road, home, capsys, monkeypatch):
    page = (road / "report" / "index.html").read_text()
    assert "Distill" in page
    assert "The reward is what Distill climbed" in page
    monkeypatch.setattr("sys.stdin", io.StringIO("Das 1. Kind liest.\n"))
    assert main(["chat", "translation", "--run", "distill"]) == 0
    assert main(["export", "translation", "--run", "distill"]) == 0
    card = (road / "export" / "README.md").read_text()
    assert "by SFT on the best of several of its own answers, by the recipe's reward" in card
    capsys.readouterr()
    assert main(["compare", "distill"]) in (0, 2)
    assert main(["runs"]) == 0
    assert "Distill" in capsys.readouterr().out


def test_another_reward_draws_and_learns_again_where_forced_and_is_refused_else(road, home, capsys):
    said = refused(capsys, "distill", "translation", "--run", "distill", "terms.learned=0.5")
    assert "distill was made with terms.learned = 1.0 where you now have 0.5" in said


def test_it_is_not_run_on_a_reward_model_that_is_not_shown_to_be_worth_it(finished, home, capsys):
    few = [s for s in DISTILL if not s.startswith(("evaluate.", "run.", "reward.", "distill.anyway"))]
    said = refused(capsys, "distill", "translation", "--run", "distill-weak", "--from", "t", *OWN, *few)
    assert "DISTILL is not run: the reward model's held-out accuracy" in said
    assert "or say distill.anyway=true" in said


@pytest.mark.parametrize("moment", [3, 9, 12])
def test_one_that_was_interrupted_ends_with_the_same_bytes(moment, road, home, monkeypatch):
    """In the ten batches of answers, and in the steps behind them."""
    usual, asked = Checkpoints.due, []

    def due(self):
        asked.append(self)
        if len(asked) == moment:
            os.kill(os.getpid(), signal.SIGTERM)
        return usual(self)

    run = f"distill-{moment}"
    command = ["distill", "translation", "--run", run, "--from", "distill", *OWN, *DISTILL]
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "due", due)
        assert main(command) == INTERRUPTED
    assert main(command) == 0
    again = home / "runs" / run / "translation" / "distill"
    assert records(again.parent)["distill"]["resumed"]["step"] == (4 * moment if moment < 10 else 40 + 1 + moment - 10)
    for name in ("adapter/adapter_model.safetensors", "answers.jsonl"):
        assert (again / name).read_bytes() == (road / "distill" / name).read_bytes()


def test_what_was_drawn_is_not_drawn_again(road, home, monkeypatch):
    usual, asked, drawn = Checkpoints.due, [], []

    def due(self):
        asked.append(self)
        if len(asked) == 12:
            os.kill(os.getpid(), signal.SIGTERM)
        return usual(self)

    run = ["distill", "translation", "--run", "distill-once", "--from", "distill", *OWN, *DISTILL]
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "due", due)
        assert main(run) == INTERRUPTED
    monkeypatch.setattr(drawing, "_drawn", lambda *_: drawn.append(1))
    assert main(run) == 0
    assert not drawn


def test_a_score_that_is_no_number_is_told_with_its_answer_and_nothing_is_kept(road, home, capsys, monkeypatch):
    usual = drawing.going_rows

    def broken(*arguments):
        return [{**row, "learned": math.nan} for row in usual(*arguments)]

    monkeypatch.setattr(drawing, "going_rows", broken)
    said = refused(capsys, "distill", "translation", "--run", "distill-nan", "--from", "distill", *OWN, *DISTILL)
    assert "the weighted sum of the reward's terms is nan on the answer" in said
    assert not (home / "runs" / "distill-nan" / "translation" / "distill").exists()


def test_a_function_of_ones_own_is_the_whole_reward_and_one_that_says_nothing_is_told(home, capsys):
    (home / "flat.py").write_text("def flat(prompt, answer, example):\n    return 1.0\n", encoding="utf-8")
    few = [s for s in DISTILL if not s.startswith(("reward.", "evaluate.", "distill.anyway"))]
    own = ("terms.learned=0", "reward.function=flat.py:flat", "distill.missing_eos_penalty=0")
    for stage in ("sft", "distill"):
        assert main([stage, "translation", "--run", "distill-flat", *OWN, *few, *own]) == 0
    said, record = capsys.readouterr().out, records(home / "runs" / "distill-flat" / "translation")["distill"]
    weight = sum(value for name, value in record["settings"].items() if name == "terms.flat")
    assert weight == 1.0
    assert "answers that all scored the same" in said or record["drawn"]["flat"] < 0.8


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["distill.num_generations=1"], "distill.num_generations=1: it must be 2 or more"),
        (["distill.num_generations=200"], "has no room for them; raise that, or lower the first"),
        (["distill.beta=0.1"], "distill.beta is not a setting: nothing holds it at SFT but the few steps"),
        (["distill.best_of_n=8"], "did you mean 'distill.num_generations'?"),
        (["distill.max_completion_length=8"], "use ppo.response_length"),
        (["distill.max_steps=0"], "distill.max_steps is 0; give a number of steps, or distill.num_train_epochs"),
    ],
)
def test_settings_that_mean_nothing_are_refused_in_a_sentence(settings, said):
    with pytest.raises(UserError) as error:
        load_profile("tiny", ["run.algorithms=distill", *settings])
    assert said in str(error.value)


def test_a_setting_of_a_run_without_it_is_refused():
    with pytest.raises(UserError, match=r"distill\.limit=8 has no effect on a run without distill"):
        load_profile("tiny", ["distill.limit=8"])


def test_too_few_prompts_are_refused_before_anything_is_drawn(road, home, capsys):
    run = ("distill", "translation", "--run", "distill-few", "--from", "distill", *OWN, *DISTILL, "distill.limit=3")
    said = refused(capsys, *run)
    assert "3 prompts cannot fill one batch of 4" in said
    assert "distill.per_device_train_batch_size=3" in said


def test_a_tenth_of_many_prompts_says_which_step_to_keep(home, capsys):
    rows = [{"source": f"Der {i}. Hund bellt.", "target": f"Dog number {i} barks."} for i in range(320)]
    write_rows(home / "hounds.jsonl", rows)
    few = [s for s in DISTILL if not s.startswith(("distill.limit", "distill.num_generations"))]
    settings = ("distill.limit=220", "distill.num_generations=2", "distill.local_rollout_forward_batch_size=100")
    for stage in ("sft", "reward", "distill"):
        run = [stage, "translation", "--run", "distill-aside", "--data", "hounds.jsonl", *few, *settings]
        assert main(run) == 0
    record = records(home / "runs" / "distill-aside" / "translation")["distill"]
    assert "on the best answers to 198 prompts, 22 set aside" in capsys.readouterr().out
    assert record["kept"]["rows"] == 22


def test_it_begins_at_the_base_where_one_says_so(home):
    few = [s for s in DISTILL if not s.startswith(("sft.", "reward.", "evaluate.policies", "distill.anyway"))]
    (home / "short.py").write_text("def short(prompt, answer, example):\n    return -len(answer)\n", encoding="utf-8")
    own = ("run.start=base", "terms.learned=0", "reward.function=short.py:short", "evaluate.policies=base,distill")
    assert main(["run", "translation", "--run", "distill-base", *OWN, *few, *own]) == 0
    found = records(home / "runs" / "distill-base" / "translation")
    assert "sft" not in found
    assert list(found["evaluate"]["metrics"]) == ["base", "distill"]


def test_python_runs_it_by_name(home):
    profile = load_profile("tiny", [*DISTILL])
    made = run_recipe("translation", profile, ("sft", "reward", "distill"), run="python-distill", data="pairs.jsonl")
    assert made["distill"]["drawn"]["answers"] == 120


def test_a_second_round_begins_at_the_first_ones_policy_with_the_same_reward_model(road, home):
    few = [s for s in DISTILL if not s.startswith(("sft.", "reward.", "lora."))]
    begun = ("run.start=runs/distill/translation/distill/adapter", "reward.model=runs/distill/translation/reward")
    assert (
        main(["run", "translation", "--run", "distill-again", *OWN, *few, *begun, "evaluate.policies=sft,distill"]) == 0
    )
    found = records(home / "runs" / "distill-again" / "translation")
    assert found["distill"]["drawn"]["answers"] == 120
    assert {"gain"} <= found["evaluate"]["comparisons"]["distill_over_sft"].keys()
    first = (road / "distill" / "answers.jsonl").read_bytes()
    assert (home / "runs" / "distill-again" / "translation" / "distill" / "answers.jsonl").read_bytes() != first
