"""The benchmark measures both arms, says what it found and hides no miss; no test looks at a time."""

import dataclasses
import json
import math

import pytest
import torch

from benchmarks import gpu
from benchmarks.__main__ import main
from benchmarks.gpu_checks import checks
from benchmarks.growth import exponent
from benchmarks.page import number, verdict
from benchmarks.record import (
    CPU_TARGETS,
    MEMORY_TARGETS,
    gain_record,
    of_quick_run,
    other_targets,
    pair_record,
    shape_record,
    targets,
)
from benchmarks.work import EOS, FULL, TOY, large, of_algorithm, prompts

SHAPES = ("trunk_heavy", "vocabulary_heavy", "varied_lengths")


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """The folder of a quick run. Nobody may change it."""
    folder = tmp_path_factory.mktemp("bench")
    assert main(["--quick", "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def record(bench):
    return json.loads((bench / "done.json").read_text(encoding="utf-8"))


def numbers(value):
    """All numbers in a JSON value, wherever they are."""
    if isinstance(value, dict | list):
        return [n for item in (value.values() if isinstance(value, dict) else value) for n in numbers(item)]
    return [value] if isinstance(value, int | float) else []


# The quick run.


def test_both_arms_run_once_on_each_shape(record):
    assert tuple(record["shapes"]) == SHAPES
    for shape in record["shapes"].values():
        assert len(shape["pairs"]) == 1
        for arm in ("plain", "ours"):
            assert shape["pairs"][0][arm].keys() == {"cpu_s", "wall_s", "peak_mb", "absolute_peak_mb"}
            assert shape["pairs"][0][arm]["cpu_s"] > 0


def test_each_shape_has_its_ratios_with_ranges_and_its_overhead(record):
    for shape in record["shapes"].values():
        for ratio in ("cpu_ratio", "wall_ratio", "memory_ratio", "absolute_memory_ratio"):
            assert shape[ratio].keys() == {"value", "low", "high"}
        assert {"overhead", "overhead_wall", "overhead_over_arithmetic", "arithmetic_s", "update_s"} <= shape.keys()
        assert min(shape["arithmetic_s"].values()) > 0


def test_rloo_grpo_and_dpo_are_measured_beside_trls_and_rloo_beside_our_ppo(record):
    assert {name: tuple(shapes) for name, shapes in record["others"].items()} == dict.fromkeys(
        ("rloo", "grpo", "dpo"), ("trunk_heavy", "vocabulary_heavy")
    )
    for name, shapes in record["others"].items():
        for shape in shapes.values():
            assert shape["work"]["answers_each"] == (2 if name == "dpo" else 4)
            assert set(shape["pairs"][0]) == {"plain", "ours", *(["ppo"] if name == "rloo" else [])}
            assert ("memory_ratio_to_ppo" in shape) == (name == "rloo")
            assert min(shape[arm]["cpu_s"] for arm in ("plain", "ours")) > 0


def test_growth_is_measured_for_both_arms_along_each_axis(record):
    assert [row["axis"] for row in record["growth"]] == ["batch", "answer", "vocabulary"]
    for row in record["growth"]:
        assert row["sizes"][1] == 2 * row["sizes"][0]
        for arm in ("plain", "ours"):
            assert {"cpu_s", "peak_mb", "cpu_s_exponent", "peak_mb_exponent"} == row[arm].keys()


def test_everything_is_finite_and_the_machine_is_named(record):
    assert all(math.isfinite(value) for value in numbers(record))
    assert {"cpu", "cores", "torch", "trl"} <= record["machine"].keys()


def test_the_exact_part_reproduces_plain_trl(record):
    exact = record["equality"]["exact"]
    assert set(exact) == {"trunk", "adapter"}
    for differences in exact.values():
        assert differences.keys() == {"objective/kl", "loss/policy_avg", "loss/value_avg", "val/ratio"}
        assert max(differences.values()) < 1e-4


def test_both_arms_start_from_the_same_reward(record):
    curves = record["equality"]["gain"]["curves"]
    assert [run[0] for run in curves["ours"]] == pytest.approx([run[0] for run in curves["plain"]])
    assert curves["ours"] != curves["plain"], "the value models differ, so the arms part ways"


def test_the_page_holds_every_target_and_no_link_to_elsewhere(bench, record):
    page = (bench / "index.html").read_text(encoding="utf-8")
    assert all(target["name"].replace("_", " ").replace("'", "&#39;") in page for target in record["targets"])
    assert page.count("<svg") == 16
    assert "figures mean nothing" in page
    assert "://" not in page


# The arms.


def test_plain_trl_trains_its_whole_value_model(tmp_path):
    from benchmarks import models, plain

    trainer = plain.build(TOY, models.tokenizer(TOY.model), tmp_path)
    before = {name: weight.detach().clone() for name, weight in trainer.model.value_model.named_parameters()}
    trainer.train()
    after = dict(trainer.model.value_model.named_parameters())
    assert {name for name in before if not before[name].equal(after[name])} == set(before)


def test_plain_trl_can_be_given_a_value_adapter_as_ours_is(tmp_path):
    from benchmarks import models, plain

    work = dataclasses.replace(TOY, value="adapter")
    trainer = plain.build_with_value(work, models.tokenizer(work.model), tmp_path, bias=True)
    trained = {name for name, weight in trainer.model.value_model.named_parameters() if weight.requires_grad}
    assert {"score.weight", "score.bias"} <= trained
    assert all("lora_" in name or "score." in name for name in trained)
    trainer.train()


@pytest.mark.parametrize("quantization", ["none", "nf4"])
@pytest.mark.parametrize("algorithm", ["rloo", "grpo"])
def test_both_arms_of_rloo_and_grpo_learn_from_as_many_answers_to_the_same_prompts(algorithm, quantization, tmp_path):
    from benchmarks import models, ours, plain_groups

    model = dataclasses.replace(TOY.model, quantization=quantization)
    work = of_algorithm(dataclasses.replace(TOY, model=model, reward="program"), algorithm)
    tokenizer = models.tokenizer(work.model)
    plain, mine = plain_groups.build(work, tokenizer, tmp_path), ours.build(work, tokenizer, tmp_path)
    assert {prompt.strip() for prompt in plain.train_dataset["prompt"]} == {tokenizer.decode(p) for p in mine.prompts}
    scored = []
    plain.reward_funcs[0] = lambda completions, **rest: (
        scored.extend(completions) or [float(len(scored))] * len(completions)
    )
    plain.train()
    mine.train()
    assert len(scored) == mine.state.episode == work.batch * work.updates
    assert plain.state.global_step == work.updates * work.epochs
    assert plain.ref_model is None, "TRL's reference is the base without the adapter"
    assert plain.beta == mine.args.kl_coef > 0
    trained = [parameter for parameter in plain.model.parameters() if parameter.requires_grad]
    assert {parameter.dtype for parameter in trained} == {torch.float32}
    assert sum(map(torch.numel, trained)) == sum(map(torch.numel, mine._trainable()))


def test_plain_trl_and_ours_give_an_answer_the_same_reward(tmp_path):
    from benchmarks import models, ours, plain_groups

    work = of_algorithm(TOY, "rloo")
    tokenizer = models.tokenizer(work.model)
    plain, mine = plain_groups.build(work, tokenizer, tmp_path), ours.build(work, tokenizer, tmp_path)
    rollout = mine.roll_out(next(mine._batches()))
    texts = [plain_groups._text(row[:n].tolist()) for row, n in zip(rollout.ids, rollout.prompt_lengths, strict=True)]
    theirs = plain._calculate_rewards([{"prompt": text} for text in texts], texts, rollout.answers, [])[:, 0]
    whole = ~rollout.ended  # TRL's text of an answer is without its end
    assert whole.any()
    assert torch.allclose(theirs[whole], mine.score(rollout)[0]["learned"][whole], atol=1e-4)


def test_prompts_have_the_lengths_asked_for_and_no_special_tokens():
    varied = FULL.shapes[2]
    rows = prompts(varied)
    assert len(rows) == varied.batch * (varied.updates + 1)
    assert 8 <= min(map(len, rows)) < 16
    assert 120 < max(map(len, rows)) <= 128
    assert all(token > EOS for row in rows for token in row)
    assert prompts(varied) == rows


def test_a_models_size_runs_in_a_process_of_its_own(tmp_path, capfd):
    assert main(["--model", "llama-toy", "--out", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "llama-toy" / "done.json").read_text(encoding="utf-8"))
    assert record["large"]["phases"].keys() == {"roll_out", "score", "estimate_advantages", "update"}
    assert record["targets"][0]["met"] is None, "a CPU's memory says nothing about a GPU's"
    assert all(math.isfinite(value) for value in numbers(record))
    assert "not run on a GPU" in (tmp_path / "llama-toy" / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--device", "cuda"], "add --model"),
        (["--model", "llama-8b"], "too large for a CPU"),
        (["--model", "lama-8b"], "llama-8b"),
        (["--quick", "--model", "llama-toy"], "--quick has no effect"),
    ],
)
def test_options_that_cannot_go_together_are_refused_in_one_line(options, said, capsys, tmp_path):
    assert main([*options, "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert said in error
    assert error.count("\n") == 1


# The figures.


def arm(cpu, memory):
    return {"cpu_s": cpu, "wall_s": cpu, "peak_mb": memory, "absolute_peak_mb": memory + 500}


def shape(cpu, memory, share=0.05):
    pairs = [{"plain": arm(10.0, 100.0), "ours": arm(10 * cpu * turn, 100 * memory)} for turn in (0.9, 1.0, 1.3)]
    return shape_record(pairs, {"overhead": share})


def test_a_ratio_is_the_median_of_the_pairs_with_their_range():
    found = shape(0.5, 0.2)
    assert found["cpu_ratio"] == pytest.approx({"value": 0.5, "low": 0.45, "high": 0.65})
    assert found["memory_ratio"]["value"] == pytest.approx(0.2)
    assert found["absolute_memory_ratio"]["value"] == pytest.approx(520 / 600)


def test_overhead_is_also_told_over_the_arithmetic_alone():
    assert shape(0.5, 0.2, share=0.2)["overhead_over_arithmetic"] == pytest.approx(0.25)


GAIN = {"gains": {"plain": [1.0, 2.0, 3.0], "ours": [1.5, 2.0, 3.1]}}


def judged(cpu, memory, share=0.05, exact=1e-6, gains=GAIN):
    shapes = {name: shape(cpu, memory, share) for name in SHAPES}
    rows = targets(shapes, {"trunk": {"objective/kl": exact}}, gain_record(gains))
    return {row["name"]: row["met"] for row in rows}


def test_targets_are_met_at_their_limits_and_missed_above():
    limits = {*(f"CPU time, {name}" for name in CPU_TARGETS), *(f"peak memory, {name}" for name in MEMORY_TARGETS)}
    assert {judged(0.5, 0.2)[name] for name in limits} == {True}
    assert {judged(1.01, 0.46)[name] for name in limits} == {False}
    assert judged(0.5, 0.2, share=0.14)["overhead over model arithmetic, trunk_heavy"] is False
    assert judged(0.5, 0.2, exact=2e-4)["largest difference from plain TRL, value on trunk"] is False


def test_the_targets_of_rloo_and_grpo_are_met_at_their_limits_and_missed_above():
    def judged(cpu, memory, over):
        pairs = [{"plain": arm(10.0, 100.0), "ours": arm(10 * cpu, 100 * memory), "ppo": arm(9.0, 100 * memory / over)}]
        rows = other_targets({"rloo": {name: pair_record(pairs) for name in ("trunk_heavy", "vocabulary_heavy")}})
        return {row["name"]: row["met"] for row in rows}

    assert set(judged(0.75, 0.5, 0.85).values()) == {True}
    assert set(judged(0.76, 0.51, 0.86).values()) == {False}
    assert set(judged(0.75, 0.5, 0.85)) == {
        *("RLOO, CPU time, trunk_heavy", "RLOO, CPU time, vocabulary_heavy", "RLOO, peak memory, vocabulary_heavy"),
        "RLOO, peak memory over our PPO's with a value adapter, trunk_heavy",
        "RLOO, peak memory over our PPO's with a value adapter, vocabulary_heavy",
    }


def test_what_was_not_measured_is_neither_met_nor_missed():
    found = judged(0.5, 0.2)
    assert found["largest difference from plain TRL, value on adapter"] is None
    assert found["GPU memory in GB, four roles of an 8B model"] is None


def test_a_gain_that_is_shown_to_be_less_misses_its_target():
    name = "gain in reward over plain TRL's, value on trunk"
    assert judged(0.5, 0.2)[name] is True
    assert judged(0.5, 0.2, gains={"gains": {"plain": [2.0, 2.1, 2.2], "ours": [1.0, 1.1, 1.2001]}})[name] is False


def test_the_difference_of_gains_has_its_t_interval():
    found = gain_record(GAIN)["difference"]
    assert found["value"] == pytest.approx(0.2)
    assert found["high"] - found["value"] == pytest.approx(4.303 * 0.26458 / math.sqrt(3), rel=1e-3)


def test_a_quick_run_judges_nothing_but_equality():
    rows = [{"name": "a", "limit": 0.5, "met": True}, {"name": "b", "limit": 1e-4, "met": True}]
    assert [row["met"] for row in of_quick_run(rows)] == [None, True]


def test_the_verdict_counts_what_is_missed():
    rows = [{"met": True}, {"met": False}, {"met": False}, {"met": None}]
    assert verdict({"targets": rows, "quick": False}) == "Of 4 targets: 1 met, 2 missed, 1 not measured."


def test_an_exponent_is_that_of_the_power_law():
    sizes = [16, 32, 64, 128]
    assert exponent(sizes, [3 * size**1.5 for size in sizes]) == pytest.approx(1.5)
    assert exponent(sizes, [0.0, 1.0, 2.0, 3.0]) == 0.0


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0.000"), (0.5, "0.500"), (-1.5, "−1.500"), (12.34, "12.3"), (1234.5, "1,234"), (2e-7, "2.0e−07")],
)
def test_numbers_have_three_digits_that_count(value, text):
    assert number(value) == text


# What only a GPU can tell.


def test_every_check_of_a_gpu_runs_on_a_toy(tmp_path):
    rows = checks(large("qwen3-toy"), tmp_path, "cpu")["rows"]
    found = {row["name"]: row for row in rows}
    assert found["weights and buffers"]["met"]
    assert found["a policy beside itself, before a step"]["met"]
    assert found["a paged optimizer, saved and restored"]["met"]
    assert found["strict mode, twice"]["found"].startswith("the same gradients")
    assert {row["met"] for row in rows} <= {True, False, None}


def test_the_checks_of_a_gpu_go_on_where_they_were_stopped(tmp_path, monkeypatch, capsys):
    """A group that is there is not made again; a CPU meets no target."""
    made = []

    def group(name):
        def make(device, model):
            made.append(name)
            return [{"name": name, "target": "–", "found": "found", "met": False}]

        return make

    for name in gpu.GROUPS:
        monkeypatch.setattr(gpu, f"_{name}", group(name))
    toy = ["--device", "cpu", "--model", "qwen3-toy", "--out", str(tmp_path)]
    assert gpu.main([*toy, "--only", "bench", "tests"]) == 0
    assert gpu.main(toy) == 0
    assert made == ["bench", "tests", "model", "road"]
    assert "| road | – | found | – |" in capsys.readouterr().out


def test_a_missed_target_of_a_gpu_fails_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "_machine", lambda device: "a card")
    monkeypatch.setattr(gpu, "_tests", lambda device, model: [{"name": "t", "target": "–", "found": "f", "met": False}])
    assert gpu.main(["--only", "tests", "--out", str(tmp_path)]) == 1


def test_a_models_size_is_no_check_for_a_cpu(tmp_path, capsys):
    assert gpu.main(["--device", "cpu", "--out", str(tmp_path)]) == 2
    assert "take a model that ends in -toy" in capsys.readouterr().err
