"""DPO's rows of the benchmark: both arms do the same training, and its targets are judged; no test looks at a time."""

import dataclasses

import pytest
import torch

from benchmarks import models, ours_dpo, plain_dpo
from benchmarks.record import other_targets, pair_record
from benchmarks.work import EOS, TOY, comparisons, of_algorithm, prompts


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_both_arms_of_dpo_read_the_same_comparisons_once_for_the_reference_and_end_with_the_same_adapter(
    quantization, tmp_path, monkeypatch
):
    model = dataclasses.replace(TOY.model, quantization=quantization)
    work = dataclasses.replace(of_algorithm(TOY, "dpo"), model=model, learning_rate=1e-2)
    tokenizer = models.tokenizer(work.model)
    read = []
    usual, compute = ours_dpo.reference_logprobs, plain_dpo.OfTokens.compute_ref_log_probs
    monkeypatch.setattr(
        ours_dpo, "reference_logprobs", lambda model, rows, *rest: read.append(len(rows)) or usual(model, rows, *rest)
    )
    monkeypatch.setattr(
        plain_dpo.OfTokens,
        "compute_ref_log_probs",
        lambda self, model, inputs: read.append(len(inputs["input_ids"]) // 2) or compute(self, model, inputs),
    )
    mine = ours_dpo.begin(work, tokenizer, tmp_path)()
    assert read == [work.batch * work.updates // 2]
    plain = plain_dpo.begin(work, tokenizer, tmp_path)()
    assert sum(read) == work.batch * work.updates
    assert plain.state.global_step == mine.state.global_step == work.updates * work.epochs
    assert plain.ref_model is None
    assert plain.args.beta == mine.args.beta > 0
    theirs = {name: weight for name, weight in plain.model.named_parameters() if weight.requires_grad}
    assert {weight.dtype for weight in theirs.values()} == {torch.float32}
    moved = [weight for name, weight in theirs.items() if "lora_B" in name]
    assert min(weight.abs().max().item() for weight in moved) > 1e-3
    for name, weight in theirs.items():
        torch.testing.assert_close(mine.model.get_parameter(name), weight, atol=1e-4, rtol=1e-3)


def test_a_comparison_has_two_answers_of_its_own_that_end():
    work = of_algorithm(TOY, "dpo")
    rows = comparisons(work)
    assert [row["prompt_ids"] for row in rows] == prompts(work)
    assert len(rows) * 2 == work.batch * work.updates
    answers = [row[name] for row in rows for name in ("chosen_ids", "rejected_ids")]
    assert {len(ids) for ids in answers} == {work.answer}
    assert {ids.index(EOS) for ids in answers} == {work.answer - 1}
    assert len({tuple(ids) for ids in answers}) == len(answers)
    assert comparisons(work) == rows


def test_the_targets_of_dpo_are_met_at_their_limits_and_missed_above():
    def arm(cpu, memory):
        return dict.fromkeys(("cpu_s", "wall_s"), cpu) | dict.fromkeys(("peak_mb", "absolute_peak_mb"), memory)

    def judged(cpu, memory):
        pairs = [{"plain": arm(10.0, 100.0), "ours": arm(10 * cpu, 100 * memory)}]
        rows = other_targets({"dpo": {name: pair_record(pairs) for name in ("trunk_heavy", "vocabulary_heavy")}})
        return {row["name"]: row["met"] for row in rows}

    names = {"DPO, CPU time, trunk_heavy", "DPO, CPU time, vocabulary_heavy", "DPO, peak memory, vocabulary_heavy"}
    assert judged(0.9, 0.5) == dict.fromkeys(names, True)
    assert judged(0.91, 0.51) == dict.fromkeys(names, False)
