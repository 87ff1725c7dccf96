"""What pages and tables say of a run with other algorithms than PPO, or with several."""

import pytest

from rlrecipes.report.hacking import hacking
from rlrecipes.report.plots import curves
from rlrecipes.report.records import columns, last_pair, not_run
from rlrecipes.report.warnings import warnings
from rlrecipes.run.folder import Run

UP = {"value": 0.1, "low": 0.05, "high": 0.15}
GAIN = {"gain": UP, "reward_gain": UP}


def records(*algorithms, **more):
    evaluation = {
        "headline": "chrf",
        "metrics": {name: {} for name in ("base", "sft", *algorithms)},
        "comparisons": {f"{name}_over_sft": GAIN for name in algorithms},
    }
    return {"sft": {}, **{name: {"settings": {}} for name in algorithms}, "evaluate": evaluation} | more


@pytest.mark.parametrize(
    ("runs", "heads"),
    [
        ([{}], ["base", "SFT", "PPO", "PPO over SFT"]),
        ([records("ppo")], ["base", "SFT", "PPO", "PPO over SFT"]),
        ([records("grpo")], ["base", "SFT", "GRPO", "GRPO over SFT"]),
        ([records("grpo"), records("ppo")], ["base", "SFT", "GRPO", "PPO", "PPO over SFT"]),
        ([records("rloo", "grpo", "ppo")], ["base", "SFT", "RLOO", "GRPO", "PPO", "PPO over SFT"]),
    ],
)
def test_a_table_has_the_columns_of_the_algorithms_that_its_runs_have(runs, heads):
    assert columns(runs).heads == heads


def test_a_run_without_ppo_is_about_its_last_algorithm():
    assert last_pair(records("rloo", "grpo")).title == "GRPO over SFT"


def test_a_run_without_evaluation_is_about_what_it_trained_last():
    assert last_pair({"sft": {}, "dpo": {"settings": {}}}).title == "DPO over SFT"
    assert last_pair({"dpo": {"settings": {"run.start": "base"}}}).title == "DPO over base"
    assert last_pair({"sft": {}}).title == "PPO over SFT"


def test_a_column_over_runs_that_began_at_different_places_names_neither():
    base = records("grpo")
    base["grpo"]["settings"]["run.start"] = "base"
    base["evaluate"]["comparisons"] = {"grpo_over_base": {"gain": {}}}
    assert columns([base, records("grpo")]).heads == ["base", "SFT", "GRPO", "GRPO over its start"]
    assert columns([base, base]).heads[-1] == "GRPO over base"
    assert columns([base, records("ppo")]).heads[-1] == "PPO over SFT"


def test_what_was_not_run_is_named():
    weak = {"withheld": "the reward model is at chance"}
    assert not_run({"evaluate": weak}) == "PPO was not run: the reward model is at chance"
    both = {"evaluate": weak | {"not_run": ["rloo", "grpo"]}}
    assert not_run(both) == "RLOO and GRPO were not run: the reward model is at chance"
    assert not_run(records("grpo")) is None


def test_each_algorithm_has_its_curves(tmp_path):
    rows = [{"step": step, "objective/scores": 0.1 * step, "groups/flat": 0.5} for step in range(3)]
    found = dict(curves(Run("r", "translation", tmp_path), records("ppo", "grpo"), {"ppo": rows, "grpo": rows}))
    assert list(found) == ["PPO", "GRPO"]
    assert any(plot.title == "Prompts without a difference" for plot in found["GRPO"])


def test_a_warning_names_the_algorithm_and_the_settings_that_it_is_about():
    far = [{"step": step, "objective/kl": 40.0, "answers/ended": 1.0} for step in range(3)]
    well = [row | {"objective/kl": 1.0} for row in far]
    (said,) = warnings(records("ppo", "grpo"), {"ppo": well, "grpo": far})
    assert said.startswith("GRPO: the KL reached 40.0 nats per answer")
    (alone,) = warnings(records("ppo"), {"ppo": far})
    assert alone.startswith("The KL reached 40.0 nats per answer")

    longer = [
        {"step": step, "answers/length": 10.0 + 5 * step, "answers/length_correlation": 0.9} for step in range(12)
    ]
    (alarm,) = hacking(records("grpo"), {"grpo": longer}, [])
    assert "raise grpo.beta" in alarm
