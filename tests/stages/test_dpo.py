"""DPO is a stage beside PPO, on the SFT policy and the reward model's comparisons, and judged and exported as it is."""

import hashlib
import io
import json
import math
import os
import signal

import pytest
import torch
from conftest import SHORTEST, SMALLEST_BASE, main, sentences, write_rows
from kills import INTERRUPTED
from safetensors.torch import load_file

from rlrecipes import run_recipe
from rlrecipes.profile import load_profile
from rlrecipes.run.checkpoint import Checkpoints

DPO = (
    *(s for s in (*SMALLEST_BASE, *SHORTEST) if not s.startswith("ppo.") or s.startswith("ppo.response_length")),
    *("run.algorithms=dpo", "evaluate.policies=all", "dpo.max_steps=4", "dpo.per_device_train_batch_size=4"),
    *("dpo.logging_steps=1", "dpo.learning_rate=1e-2"),
)
OWN = ("--data", "pairs.jsonl")


def records(folder):
    return {path.parent.name: json.loads(path.read_text()) for path in folder.glob("*/done.json")}


def logged(folder):
    return [json.loads(line) for line in (folder / "dpo" / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def road(session_home):
    """`runs/dpo/translation`, all stages done with DPO alone. Nobody may change it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(session_home)
        assert main(["run", "translation", "--run", "dpo", *OWN, *DPO]) == 0
    return session_home / "runs" / "dpo" / "translation"


def test_a_run_does_with_dpo_alone_and_measures_it_by_the_reward_model(road):
    found = records(road)
    assert found.keys() == {"sft", "reward", "dpo", "answers", "evaluate", "report"}
    assert list(found["evaluate"]["metrics"]) == ["base", "sft", "best4", "best16", "dpo"]
    assert "reward" in found["evaluate"]["metrics"]["dpo"]
    assert found["evaluate"]["kl"]["dpo"]["value"] is not None
    assert {"gain", "reward_gain"} <= found["evaluate"]["comparisons"]["dpo_over_sft"].keys()
    assert not [name for name in found["dpo"]["settings"] if name.startswith(("reward.", "terms.", "ppo."))]


def test_it_begins_at_sft_although_trl_rounds_the_adapters_of_a_4_bit_base(road):
    first, *_, last = logged(road)
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert first["rewards/margins"] == pytest.approx(0, abs=1e-5)
    assert last["rewards/margins"] > 1e-3
    assert records(road)["dpo"]["metrics"]["rewards/margins"] == last["rewards/margins"]


def test_the_references_log_probabilities_are_kept_with_their_checksum(road):
    kept, record = load_file(road / "dpo" / "reference.safetensors")["logprobs"], records(road)["dpo"]
    assert kept.shape == (50, 2)
    digest = hashlib.sha256(kept.numpy().tobytes()).hexdigest()
    assert record["reference"] == {"comparisons": 50, "sha256": digest}
    assert "reference.safetensors" in record["files"]
    assert bool((kept < 0).all())


def test_report_chat_export_and_compare_take_it(road, home, capsys, monkeypatch):
    page = (road / "report" / "index.html").read_text()
    assert "Chosen answers preferred" in page
    assert "The reward is what PPO would climb" in page
    monkeypatch.setattr("sys.stdin", io.StringIO("Das 1. Kind liest.\n"))
    assert main(["chat", "translation", "--run", "dpo"]) == 0
    assert main(["export", "translation", "--run", "dpo"]) == 0
    assert "by DPO on the comparisons" in (road / "export" / "README.md").read_text()
    capsys.readouterr()
    assert main(["compare", "dpo"]) in (0, 2)
    assert main(["runs"]) == 0
    assert "DPO" in capsys.readouterr().out


def test_it_runs_on_a_weak_reward_model_and_on_none_since_it_climbs_none(finished, home, capsys):
    folder = home / "runs" / "dpo-from" / "translation"
    few = [s for s in DPO if not s.startswith(("evaluate.", "run.", "reward."))]
    assert main(["dpo", "translation", "--run", "dpo-from", "--from", "t", *OWN, *few]) == 0
    assert records(folder).keys() == {"sft", "dpo"}
    assert "taken from" in capsys.readouterr().out
    assert "dpo.anyway is not a setting: DPO samples nothing" in refused(
        capsys, "dpo", "translation", "--run", "dpo-from", "dpo.anyway=true"
    )


def refused(capsys, *arguments):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("error: ") == error.partition("error: ")[2].count("\n") == 1
    return error


def test_another_reward_leaves_it_as_it_is(road, home):
    before = {stage: (road / stage / "done.json").stat().st_mtime_ns for stage in ("sft", "reward", "dpo")}
    assert main(["dpo", "translation", "--run", "dpo", "terms.learned=0.5"]) == 0
    assert {stage: (road / stage / "done.json").stat().st_mtime_ns for stage in before} == before


@pytest.mark.parametrize("stage", ["run", "sft", "show"])
def test_data_without_comparisons_are_refused_before_anything_is_trained(stage, home, capsys):
    rated = [{"prompt": f"Say {i}.", "completion": f"{i}!", "score": i % 5} for i in range(60)]
    write_rows(home / "rated_alone.jsonl", rated)
    said = refused(capsys, stage, "dialogue", "--run", "dpo-rated", "--data", "rated_alone.jsonl", *DPO)
    assert "from comparisons, but rated_alone.jsonl brings" in said
    assert "leave dpo out of run.algorithms (KTO, which learns from ratings, is not offered)" in said
    assert not (home / "runs" / "dpo-rated").exists()


def test_a_tenth_of_many_comparisons_says_which_step_to_keep(home, capsys):
    write_rows(home / "many.jsonl", sentences(300))
    folder = home / "runs" / "dpo-aside" / "translation"
    settings = ("dpo.max_steps=10", "dpo.patience=2", "dpo.learning_rate=0.5")
    for stage in ("sft", "dpo"):
        assert main([stage, "translation", "--run", "dpo-aside", "--data", "many.jsonl", *DPO, *settings]) == 0
    said, record = capsys.readouterr().out, records(folder)["dpo"]
    assert "comparisons, 23 set aside" in said
    assert record["kept"]["rows"] == 23
    assert f"kept step {record['kept']['step']} of" in said
    assert record["reference"]["comparisons"] == 235


@pytest.mark.parametrize("moment", [2, 14, 16])
def test_one_that_was_interrupted_ends_with_the_same_bytes(moment, road, home, monkeypatch):
    """In the reference's 13 batches, and in the steps behind them."""
    usual, asked = Checkpoints.due, []

    def due(self):
        asked.append(self)
        if len(asked) == moment:
            os.kill(os.getpid(), signal.SIGTERM)
        return usual(self)

    run = f"dpo-{moment}"
    command = ["dpo", "translation", "--run", run, "--from", "dpo", *OWN, *DPO]
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "due", due)
        assert main(command) == INTERRUPTED
    assert main(command) == 0
    again = home / "runs" / run / "translation" / "dpo"
    assert records(again.parent)["dpo"]["resumed"]["step"] == moment + (moment > 13)
    for name in ("adapter/adapter_model.safetensors", "reference.safetensors"):
        assert (again / name).read_bytes() == (road / "dpo" / name).read_bytes()
    timeless = [
        {k: v for k, v in row.items() if not k.endswith(("_runtime", "_per_second"))} for row in logged(again.parent)
    ]
    assert timeless == logged(road)


def test_a_loss_that_is_no_number_is_told_and_nothing_is_kept(road, home, capsys, monkeypatch):
    from rlrecipes.policy import dpo_trainer

    usual, asked = dpo_trainer.dpo_loss, []

    def broken(*arguments):
        asked.append(1)
        return usual(*arguments) * (math.nan if len(asked) == 3 else 1)

    monkeypatch.setattr(dpo_trainer, "dpo_loss", broken)
    run = ("dpo", "translation", "--run", "dpo-nan", "--from", "dpo", *OWN, *DPO)
    assert "the loss of dpo is nan in step 3, that step was not taken; lower dpo.learning_rate" in refused(capsys, *run)
    assert not list((home / "runs" / "dpo-nan" / "translation").glob("*dpo/checkpoints/step-*"))


def test_python_runs_it_by_name(home):
    profile = load_profile("tiny", [s for s in DPO if not s.startswith("run.")] + ["run.algorithms=dpo"])
    made = run_recipe("translation", profile, ("sft", "dpo"), run="python-dpo", data="pairs.jsonl")
    assert torch.isfinite(torch.tensor(made["dpo"]["metrics"]["train_loss"]))


def test_it_begins_at_the_base_where_one_says_so(home, capsys):
    few = [s for s in DPO if not s.startswith(("sft.", "reward.", "evaluate.policies"))]
    begun = ("run", "translation", "--run", "dpo-base", *OWN, *few, "run.start=base", "terms.learned=0")
    assert main([*begun, "evaluate.policies=base,dpo"]) == 0
    folder = home / "runs" / "dpo-base" / "translation"
    assert "sft" not in records(folder)
    assert logged(folder)[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert records(folder)["dpo"]["adapters"] == {"policy": "adapter"}
    assert list(records(folder)["evaluate"]["metrics"]) == ["base", "dpo"]
