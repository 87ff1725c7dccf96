"""A model of one's own without a profile gets settings that fit it, and says which."""

import dataclasses
from itertools import pairwise

import pytest
from conftest import SHORTEST, main, sentences, write_rows

from rlrecipes.before.fit import BUDGET, COST, Size, rules
from rlrecipes.before.plan import gpu_profile
from rlrecipes.profile import make_profile, read_tables
from rlrecipes.run.folder import Run

SMALL = Size(parameters=260_000, width=64, demonstrations=2400, judged=2600, prompts=2400, tokens=60)
MIDDLE = dataclasses.replace(SMALL, parameters=135_000_000, width=576)
LARGE = dataclasses.replace(SMALL, parameters=500_000_000, width=1024)


def profile_of(size):
    tables = read_tables("own")
    for table, values in rules(size).items():
        tables[table] = tables.get(table, {}) | values
    for table in ("sft", "reward"):
        del tables[table]["num_train_epochs"]
    return make_profile(tables, "own", [], None, "the settings")


@pytest.mark.parametrize("rows", [2, 9, 40, 300, 5000, 100_000])
@pytest.mark.parametrize("size", [SMALL, MIDDLE, LARGE])
def test_settings_are_a_profile_that_contradicts_nothing_whatever_the_size(size, rows):
    profile = profile_of(dataclasses.replace(size, demonstrations=rows, judged=rows, prompts=rows))
    assert profile.sft.per_device_train_batch_size <= max(2, rows // 2)
    assert profile.ppo.per_device_train_batch_size * profile.ppo.gradient_accumulation_steps <= max(2, rows)


def test_the_wider_the_model_the_lower_its_rates_and_the_larger_the_fewer_its_rows():
    tables = [rules(size) for size in (SMALL, MIDDLE, LARGE)]
    for one, other in pairwise(tables):
        for stage in ("sft", "reward", "ppo"):
            assert one[stage]["learning_rate"] > other[stage]["learning_rate"]
        assert one["sft"]["max_steps"] * one["sft"]["per_device_train_batch_size"] > (
            other["sft"]["max_steps"] * other["sft"]["per_device_train_batch_size"]
        )


@pytest.mark.parametrize("stage", ["sft", "reward"])
def test_no_stage_takes_more_than_its_budget_but_for_a_model_that_is_small(stage):
    table = rules(LARGE)[stage]
    rows = table["max_steps"] * table["per_device_train_batch_size"]
    assert 0.5 * BUDGET < COST[stage] * rows * LARGE.parameters * LARGE.tokens <= BUDGET


def test_the_rate_at_width_4096_is_near_the_published_ones_of_8b_models():
    assert 2e-4 <= rules(dataclasses.replace(LARGE, width=4096))["sft"]["learning_rate"] <= 3e-4


@pytest.mark.parametrize(
    ("gib", "name"),
    [(11.0, "single_gpu_16gb"), (15.7, "single_gpu_16gb"), (23.6, "single_gpu_24gb"), (79.2, "single_gpu_80gb")],
)
def test_a_gpu_gets_the_profile_of_its_memory(gib, name):
    assert gpu_profile(gib) == name


def test_a_model_without_a_profile_is_trained_under_settings_that_are_said_and_kept(home, checkpoint, capsys):
    write_rows(home / "pairs.jsonl", sentences(60))
    common = [setting for setting in SHORTEST if "batch_size" not in setting]
    road = ["sft", "translation", "--run", "fitted", "--data", "pairs.jsonl", "--model", str(checkpoint.model), *common]
    assert main(road) == 0
    said = capsys.readouterr().out
    assert "demonstrations of up to" in said
    assert "of width 64" in said
    assert "sft.learning_rate=0.002" in said
    (line,) = (line for line in said.splitlines() if "settings for" in line)
    assert "sft.max_steps=" not in line, "what an override has taken the place of"
    settings = Run("fitted", "translation").need("sft")["settings"]
    assert settings["model.quantization"] == "none"
    assert settings["sft.learning_rate"] == 0.002
    assert settings["sft.max_steps"] == 2, "an override has the last word"
    assert main(["sft", "translation", "--run", "fitted"]) == 0
    assert "done already" in capsys.readouterr().out


def test_a_profile_that_is_named_is_taken_as_it_is(home, checkpoint, capsys):
    assert (
        main(["show", "translation", "--profile", "tiny", "--data", "pairs.jsonl", "--model", str(checkpoint.model)])
        == 0
    )
    assert "settings for" not in capsys.readouterr().out
