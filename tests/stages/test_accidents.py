"""A stage whose result would be no result leaves nothing; what went wrong without an error is told in three places."""

import json
import math
import shutil
from types import SimpleNamespace

import pytest
import torch
from conftest import SMALLEST, main
from safetensors.torch import load_file, save_file

from rlrecipes.model.adapters import unmoved
from rlrecipes.policy import training
from rlrecipes.profile import PPOSettings
from rlrecipes.recipe import Data, Example, Split, user
from rlrecipes.reward.agreement import write_scale
from rlrecipes.reward.model import RewardModel


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo"])
def test_no_stage_closes_with_a_weight_that_is_no_number(stage, finished, home, monkeypatch, capsys):
    folder = home / "runs" / "broken" / "translation"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(finished, folder)
    for later in ("sft", "reward", "ppo", "answers", "evaluate", "report")[("sft", "reward", "ppo").index(stage) :]:
        shutil.rmtree(folder / later)

    def run(job, model_name, draft, tracker):
        (draft / "adapter").mkdir()
        save_file({"a": torch.tensor([1.0, math.nan])}, draft / "adapter" / "adapter_model.safetensors")
        return {"metrics": {}, "adapters": {}}

    monkeypatch.setattr(f"rlrecipes.stages.{stage}.run", run)
    assert main([stage, "translation", "--run", "broken", "--data", "pairs.jsonl", *SMALLEST]) == 2
    assert f"error: 1 of 2 weights of {stage}/adapter/adapter_model.safetensors became NaN" in capsys.readouterr().err
    assert not (folder / stage).exists()
    assert not (folder / f".{stage}").exists()


def test_what_a_stage_warns_of_is_on_the_console_in_its_record_and_on_the_report(finished, home, monkeypatch, capsys):
    folder = home / "runs" / "warned" / "translation"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(finished, folder)
    for stage in ("ppo", "answers", "evaluate", "report"):
        shutil.rmtree(folder / stage)
    monkeypatch.setattr(
        "rlrecipes.policy.training.faults", lambda rows, settings: [f"PPO broke after {len(rows)} rows"]
    )
    assert main(["run", "translation", "--run", "warned", "--data", "pairs.jsonl", *SMALLEST]) == 0
    assert "  warning: PPO broke after 2 rows" in capsys.readouterr().out
    assert json.loads((folder / "ppo" / "done.json").read_text())["warnings"] == ["PPO broke after 2 rows"]
    assert "PPO broke after 2 rows." in (folder / "report" / "index.html").read_text()


@pytest.fixture
def adapters(finished, tmp_path):
    """A stage's adapter, a copy of it, one whose weights are all those that training starts at, and one that moved by less
    than its layers' outputs are rounded by."""
    scales = {"one": 1, "same": 1, "fresh": 0, "rounded": 1e-30}
    for name, scale in scales.items():
        shutil.copytree(finished / "sft" / "adapter", tmp_path / f".{name}" / "adapter")
        path = tmp_path / f".{name}" / "adapter" / "adapter_model.safetensors"
        save_file({k: v * scale if "lora_B" in k else v for k, v in load_file(path).items()}, path, {"format": "pt"})
    return {name: tmp_path / f".{name}" / "adapter" for name in scales}


def test_an_adapter_that_did_not_move_is_told(adapters):
    assert unmoved(adapters["one"]) == []
    assert unmoved(adapters["one"], adapters["fresh"]) == []
    assert unmoved(adapters["one"], adapters["rounded"]) == []
    still = [unmoved(adapters[name]) for name in ("fresh", "rounded")]
    still += [unmoved(adapters["same"], adapters["one"]), unmoved(adapters["rounded"], adapters["fresh"])]
    for (said,) in still:
        assert said.startswith("training moved none of the ")
        assert "/adapter by more than 1e-08, which no output would show: the learning rate is too low" in said


class Fixed(RewardModel):
    """A reward model of given scores."""

    def scores(self, rows, batch_size):
        return [self.model[i % len(self.model)] for i in range(len(rows))]


@pytest.mark.parametrize(
    ("scores", "constant"),
    [([2.0], True), ([1e3, 1e3 + 1e-4], True), ([0.0], True), ([0.0, 0.1], False), ([1e-3, -1e-3], False)],
)
@pytest.mark.parametrize("taken", [None, "mine"])
def test_a_constant_reward_model_is_told_and_not_divided_by_nothing(tmp_path, scores, constant, taken):
    rows = [Example(user(f"{i}"), ("a",)) for i in range(8)]

    class Job:
        data = Data("x", Split(demonstrations=rows), Split())

        class profile:  # noqa: N801
            class reward:  # noqa: N801
                per_device_train_batch_size = 2
                model = taken

    model = Fixed(scores, lambda prompt, answer: {"input_ids": [1]}, 0, 9, None)
    said = write_scale(Job, tmp_path, model)
    assert len(said) == constant
    if constant:
        assert "the reward model gives all 8 demonstrations that it was scaled on the score" in said[0]
        assert ("choose another than reward.model=mine" if taken else "lower reward.learning_rate") in said[0]
        assert json.loads((tmp_path / "scale.json").read_text())["std"] == 1.0


def test_a_policy_at_rest_is_told_as_that_even_where_nothing_better_was_found(tmp_path):
    row = {"objective/kl": 0.0, "objective/scores_std": 0.5, "objective/terms_std": 0.5, "kl_coef": 0.03, "lr": 1e-7}
    watch = SimpleNamespace(warnings=lambda: ["PPO found nothing better"])
    trainer = SimpleNamespace(
        state=SimpleNamespace(log_history=[row] * 8),
        watch=watch,
        stopped=None,
        settings=PPOSettings(),
        taught_nothing=list,
        warnings=list,
    )
    (said,) = training._warnings(trainer, tmp_path, tmp_path)
    assert "so raise ppo.learning_rate (1e-07)" in said
