"""Durations: how often each pass is made, what rates make of it, and what the person asking is told."""

import dataclasses
import math
import shutil

import pytest
from conftest import main, sentences, write_rows

from rlrecipes.before.cards import CARDS, cards_of
from rlrecipes.before.durations import passes
from rlrecipes.before.learning import Plan, steps
from rlrecipes.before.passes import Pass, Sizes
from rlrecipes.before.rates import Rates, at, rounded, seconds, times
from rlrecipes.before.shape import read_shape
from rlrecipes.before.timetable import card_rates, durations, told
from rlrecipes.before.workload import Workload, aside, padded
from rlrecipes.profile import SFTSettings, load_profile
from rlrecipes.run.stages import POLICIES

WORK = Workload(
    demonstrations=2000,
    compared=1000,
    pairwise=True,
    held_out_compared=400,
    judged=(200, 200),
    prompts=1000,
    held_out=500,
    asked=[10],
    rows=[(10, 6)],
    texts=[16],
    longest=6,
    source="",
)
RATES = Rates("here", {16: 100.0, 1024: 200.0}, {16: 10.0}, 5.0, 4.0, 0.5, queued=False)


@pytest.fixture(scope="module")
def shape():
    return read_shape(load_profile("tiny"))


OF_PPO = {name: policy for name, policy in POLICIES.items() if name not in ("rloo", "grpo", "dpo", "distill")}


def made(shape, *settings, work=WORK, learned=True, policies=OF_PPO):
    return Plan(Sizes(shape, load_profile("tiny", settings), "cpu"), work, learned, policies)


def times_of(plan, phase, what):
    return [each.times for each in passes(plan)[phase] if each.what == what]


# How often.


def test_sft_takes_its_steps_and_looks_ten_times_at_a_tenth_of_its_rows(shape):
    plan = made(shape, "sft.max_steps=50", "sft.gradient_accumulation_steps=2")
    assert times_of(plan, "sft", "forward and backward") == [100]
    assert times_of(plan, "sft", "optimizer") == [50]
    assert times_of(plan, "sft", "rows set aside") == [10 * 200 / 8]
    assert times_of(made(shape, "sft.keep=last"), "sft", "rows set aside") == []


def test_epochs_are_steps_over_batches_that_may_be_short():
    settings = SFTSettings(num_train_epochs=2, per_device_train_batch_size=8, gradient_accumulation_steps=2)
    assert steps(settings, 17) == 2 * 2  # three batches are two steps
    assert steps(dataclasses.replace(settings, num_train_epochs=None, max_steps=7), 17) == 7


def test_the_reward_model_is_trained_scaled_and_measured_as_often_as_it_has_seeds(shape):
    one, three = (made(shape, "reward.max_steps=10", f"reward.seeds={count}") for count in (1, 3))
    for what, count in (("forward and backward", 10), ("scale", 512 / 64), ("held-out texts", math.ceil(800 / 64))):
        assert times_of(one, "reward", what) == [count]
        assert times_of(three, "reward", what) == [3 * count]
    assert "reward" not in passes(made(shape, learned=False))
    assert "judge" not in passes(made(shape, work=dataclasses.replace(WORK, judged=(0, 0))))


def test_ppo_passes_over_a_batch_as_often_as_its_epochs_say(shape):
    settings = ("ppo.total_episodes=100", "ppo.per_device_train_batch_size=8", "ppo.gradient_accumulation_steps=4")
    plan = made(
        shape, *settings, "ppo.num_ppo_epochs=3", "ppo.num_mini_batches=2", "ppo.local_rollout_forward_batch_size=16"
    )
    assert times_of(plan, "ppo update", "forward and backward") == [4 * 3 * 4]
    assert times_of(plan, "ppo update", "optimizer") == [4 * 3 * 2]
    assert times_of(plan, "ppo rollout", "sampling") == [4 * 2 * 6]  # chunks of 16, six tokens each
    assert times_of(plan, "ppo rollout", "scoring") == [4 * 4]
    assert times_of(plan, "ppo rollout", "values") == []
    assert times_of(made(shape, *settings, "ppo.value=adapter"), "ppo rollout", "values") == [4 * 4]
    assert times_of(plan, "ppo rollout", "policy once more") == []
    assert times_of(made(shape, *settings, "model.dtype=bfloat16"), "ppo rollout", "policy once more") == [4 * 4, 4]


def test_the_policy_is_looked_at_before_the_first_update_every_few_and_after_the_last(shape):
    settings = ("ppo.total_episodes=640", "ppo.per_device_train_batch_size=64", "ppo.eval_every=4")
    looks = [each for each in passes(made(shape, *settings))["ppo rollout"] if each.what == "looks"]
    # at updates 0, 4, 8 and 10, greedy and sampled; then the reward model and the judge on both
    assert [each.times for each in looks] == [4, 4 * 6, 4, 4 * 6, 2 * 4, 2 * 4]
    assert times_of(made(shape, *settings, "ppo.eval_every=0"), "ppo rollout", "looks") == []
    alone = passes(made(shape, *settings, "reward.seeds=3", "ppo.judge=false"))["ppo rollout"]
    assert [each.times for each in alone if each.what == "looks"][4:] == [3 * 2 * 4]
    assert times_of(made(shape, *settings), "ppo rollout", "samples") == [5, 5 * 6, 5]


def test_evaluation_draws_sixteen_answers_to_take_the_best_of(shape):
    plan = made(shape, "evaluate.limit=300", "evaluate.batch_size=100", "track.wandb=off")
    assert times_of(plan, "answers", "greedy answers") == [3 * 3 * 6]
    assert times_of(plan, "answers", "sampled answers") == [(3 + 16) * 3 * 6]
    assert times_of(plan, "answers", "divergence") == [3]
    assert times_of(plan, "evaluate", "scoring") == [(16 + 5) * 3]
    assert times_of(plan, "evaluate", "judge") == times_of(plan, "evaluate", "perplexity") == [5 * 3]
    few = {name: POLICIES[name] for name in ("base", "sft")}
    assert times_of(made(shape, "evaluate.limit=300", policies=few), "answers", "sampled answers") == [2 * 3 * 6]


def test_rows_are_padded_to_the_longest_of_those_that_are_read_together():
    lengths = list(range(1, 101))
    assert padded(lengths, 1) == 51
    assert padded(lengths, 9) == 91
    assert padded(lengths, 99) == 100
    assert padded(lengths, 33, 99) == pytest.approx((34 + 67 + 100) / 3)  # neighbours in order of length
    assert padded([7], 64) == 7


def test_rows_set_aside_are_a_tenth_where_that_is_enough():
    assert [aside(count) for count in (199, 200, 1000, 10**6)] == [0, 20, 100, 256]
    assert aside(1000, "last") == 0


# How long.


def test_a_pass_takes_the_longer_of_arithmetic_and_weights_and_all_else_on_top():
    one = Pass("", times=2, tokens=16, flops=100, weights=50, moved=10, unpacked=4, kernels=2)
    assert seconds(one, RATES) == 2 * (10 + 1 + 1 + 1)
    assert seconds(dataclasses.replace(one, flops=2000), RATES) == 2 * (20 + 1 + 1 + 1)


def test_on_a_gpu_operations_wait_in_a_queue_and_starting_them_counts_only_where_it_takes_longer():
    queued = dataclasses.replace(RATES, queued=True)
    one = Pass("", times=1, tokens=16, flops=100, weights=0, moved=0, unpacked=0, kernels=1)
    assert seconds(one, queued) == 1
    assert seconds(dataclasses.replace(one, kernels=8), queued) == 4


def test_the_rate_is_that_of_the_number_of_tokens_that_lies_next():
    assert [at(RATES.products, tokens) for tokens in (1, 100, 200, 9999)] == [100, 100, 200, 200]
    assert [rounded(tokens) for tokens in (1, 16, 40, 2000, 10**6)] == [16, 16, 64, 1024, 4096]
    assert [rounded(10**6, width**2) for width in (160, 1024, 4096)] == [4096, 256, 16]  # so that planning stays short


def test_works_that_are_measured_take_turns():
    done = []
    found = times({"a": lambda: done.append("a"), "b": lambda: done.append("b")})
    assert done[:4] == ["a", "b", "a", "b"]
    assert min(found.values()) > 0


def test_a_card_of_twice_the_rates_takes_half_as_long_where_nothing_else_counts(shape):
    settings = ("model.dtype=bfloat16", "model.quantization=none", "sft.max_steps=10")
    plan = made(shape, *settings)
    fast = card_rates("b", CARDS["a100"]._replace(tflops=624.0, gb=4078), 2)
    slow, fast = (dataclasses.replace(rates, kernel=0.0) for rates in (card_rates("a", CARDS["a100"], 2), fast))
    for one, other in zip(durations(plan, slow), durations(plan, fast), strict=True):
        assert one.seconds == pytest.approx(2 * other.seconds)


def test_a_number_of_gib_stands_for_the_cards_of_that_size_that_have_bfloat16():
    assert set(cards_of("24")) == {"a10", "l4", "rtx3090", "rtx4090"}
    assert set(cards_of("16")) == {"rtx4060ti", "rtx4080"}
    assert set(cards_of("NVIDIA H100 80GB")) == {"h100"}
    assert cards_of("999") == {}


@pytest.mark.parametrize(
    ("taken", "said"),
    [(0.04, "0.0 s"), (9.4, "9.4 s"), (89, "89 s"), (90, "1.5 min"), (3000, "50 min"), (5400, "1.5 h")],
)
def test_times_are_told_in_the_unit_that_people_use(taken, said):
    assert told(taken) == said


# What is said.


def test_the_table_has_the_cards_of_a_size_a_total_and_what_is_not_known(capsys):
    assert main(["plan", "translation", "--profile", "single_gpu_24gb"]) == 0
    said = capsys.readouterr().out
    heads, *rows = said.partition("\ntime ")[2].partition("\n\n")[0].splitlines()
    assert all(card in heads for card in cards_of("24"))
    assert [row.split("  ")[0] for row in rows] == [
        *("sft", "reward", "judge", "ppo rollout", "ppo update", "answers", "evaluate"),
        "total",
    ]
    assert "no data are read" in said
    assert "nothing was measured on a GPU" in said
    assert "not counted: the reward's terms" in said


def test_rows_of_the_data_are_counted(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "pairs.jsonl", sentences(60))
    given = ["plan", "translation", "--card", "rtx4090", "model.dtype=bfloat16"]
    assert main([*given, "--data", "pairs.jsonl"]) == 0
    assert "of the data pairs.jsonl: " in capsys.readouterr().out
    assert main([*given, "--data", "others.jsonl"]) == 2
    assert "there is no file or folder 'others.jsonl'" in capsys.readouterr().err


def test_a_run_is_planned_by_its_own_data_and_without_them_all_the_same(finished, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "runs" / "t" / "translation"
    folder.mkdir(parents=True)
    shutil.copy(finished / "settings.toml", folder)
    monkeypatch.chdir(tmp_path)
    assert main(["plan", "translation", "--run", "t"]) == 0
    assert "no data are read" in capsys.readouterr().out
    write_rows(tmp_path / "pairs.jsonl", sentences(60))
    assert main(["plan", "translation", "--run", "t"]) == 0
    assert "of the data pairs.jsonl" in capsys.readouterr().out


def test_no_times_are_told_where_no_rates_are_known(capsys):
    assert main(["plan", "translation", "--card", "rtx4090", "model.dtype=float32"]) == 0
    assert "no times: the cards' rates are known for bfloat16" in capsys.readouterr().out
    assert main(["plan", "translation", "--profile", "single_gpu_16gb", "--card", "7"]) == 0
    assert "no times: no card is known that has 7 GiB" in capsys.readouterr().out
