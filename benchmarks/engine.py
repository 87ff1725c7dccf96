"""A finished run's PPO policy answers by our sampler, and by vLLM.

    python -m benchmarks.engine --run tiny --recipe translation --python VLLM/bin/python
    {"arm": "ours, nf4", "cpu_s": 2.1, "wall_s": 2.2, "tokens": 1536, "cpu_ms_a_token": 1.4, …}
    {"arm": "vllm", "cpu_s": 9.7, …, "greedy": {"nf4": {"equal": 29, "of": 32}, …}, "apart": {"nf4": {"nats_a_token": …}, …}}

vLLM's pins cannot live with ours, so it is a process with an environment of its own, which takes the adapter at each update
and the prompts as tokens. It holds the base in full precision: its CPU build has no 4-bit. So beside our sampler on the base
in 4-bit, which is what training does, stands ours on the base in full precision, which is the same arithmetic. Each process
has one thread; both arms answer the same prompts to the same length. An update's log-probabilities would be taken anew by the
trainer: `apart` is how far vLLM's own are from those, by which the policy would seem to differ from itself.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftModel

from rlrecipes.after.finished import FinishedRun, find_finished_run
from rlrecipes.model.adapters import load_policies
from rlrecipes.model.forward import next_token_logits, states_at
from rlrecipes.model.likelihood import token_logprobs
from rlrecipes.model.loading import load_causal
from rlrecipes.model.sampling import sample
from rlrecipes.model.tokens import encode_prompt, ends, open_tokenizer, pad_left, pad_right
from rlrecipes.policy.rollout import places_before
from rlrecipes.recipe import load_recipe
from rlrecipes.run.folder import Run

UPDATES = 3
"""How often all prompts are answered, each time after the adapter was handed over anew; the last one is reported."""
WORKER = Path(__file__).with_name("engine_vllm.py")
Answers = list[list[int]]
"""The tokens of each answer, its end included."""


@dataclasses.dataclass(frozen=True)
class Work:
    """What both arms do."""

    finished: FinishedRun
    tokenizer: Any
    prompts: list[list[int]]
    length: int
    """The most tokens of an answer."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--run", required=True, help="a run under runs/ whose PPO is finished and evaluated")
    parser.add_argument("--recipe", required=True)
    parser.add_argument("--python", required=True, help="the Python of an environment that has vLLM")
    parser.add_argument("--answers", type=int, default=32, help="prompts that are answered together (32)")
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    work = _work(find_finished_run(Run(given.run, given.recipe), load_recipe(given.recipe)), given.answers)
    kinds: tuple[Literal["nf4", "none"], ...] = ("nf4", "none")
    models = {kind: _model(work, kind) for kind in kinds}
    greedy: dict[str, Answers] = {}
    for kind, model in models.items():
        row, greedy[kind] = _ours(work, model)
        print(json.dumps({"arm": f"ours, {kind}", **row}), flush=True)
    row, answers, drawn, logprobs = _theirs(work, given.python)
    row["greedy"] = {kind: _equal(answers, ours) for kind, ours in greedy.items()}
    row["apart"] = {kind: _apart(work, model, drawn, logprobs) for kind, model in models.items()}
    print(json.dumps({"arm": "vllm", **row}), flush=True)
    return 0


def _work(finished: FinishedRun, answers: int) -> Work:
    tokenizer = open_tokenizer(finished.base_model())
    prompts = [encode_prompt(tokenizer, prompt) for prompt in finished.prompts]
    prompts = [prompts[i % len(prompts)] for i in range(answers)]
    assert finished.answer_length is not None, "PPO is not finished"
    return Work(finished, tokenizer, prompts, finished.answer_length)


def _model(work: Work, quantization: Literal["nf4", "none"]) -> PeftModel:
    settings = dataclasses.replace(work.finished.model, quantization=quantization, dtype="float32")
    model = load_causal(work.finished.base_model(), settings, work.tokenizer)
    return load_policies(model, work.finished.run, ["ppo"])


def _ours(work: Work, model: PeftModel) -> tuple[dict[str, Any], Answers]:
    """What our sampler takes at temperature 1, and its greedy answers."""
    pad, last = work.tokenizer.pad_token_id, ends(work.tokenizer)
    queries = pad_left(work.prompts, pad)

    def answers(temperature: float) -> Answers:
        torch.manual_seed(0)
        tokens = sample(model, queries, pad, last, work.length, temperature).tokens.tolist()
        return [_to_end(row, last) for row in tokens]

    for _ in range(UPDATES):
        cpu, wall = time.process_time(), time.perf_counter()
        drawn = answers(1.0)
        taken = time.process_time() - cpu, time.perf_counter() - wall
    return _figures(*taken, drawn), answers(0.0)


def _theirs(work: Work, python: str) -> tuple[dict[str, Any], Answers, Answers, list[list[float]]]:
    """What vLLM takes; its greedy answers; those at temperature 1, and the log-probabilities that it gives them."""
    environment = {
        **os.environ,
        **{"OMP_NUM_THREADS": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"},
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    }
    adapter = work.finished.run.stage("ppo") / "adapter"
    asked = {
        "base": work.finished.base_model(),
        "adapter": str(adapter.resolve()),
        "prompts": work.prompts,
        "length": work.length,
        "ends": list(ends(work.tokenizer)),
        "updates": UPDATES,
        "rank": json.loads((adapter / "adapter_config.json").read_text())["r"],
    }
    done = subprocess.run(
        [python, "-P", str(WORKER)],
        input=json.dumps(asked),
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    told = json.loads(done.stdout.splitlines()[-1])
    row = _figures(told["cpu_s"], told["wall_s"], told["drawn"])
    row |= {"load_s": told["load_s"], "adapter_s": told["adapter_s"], "peak_gib": told["peak_gib"]}
    return row, told["greedy"], told["drawn"], told["logprobs"]


def _figures(cpu: float, wall: float, drawn: Answers) -> dict[str, Any]:
    tokens = sum(map(len, drawn))
    return {
        "cpu_s": round(cpu, 2),
        "wall_s": round(wall, 2),
        "tokens": tokens,
        "cpu_ms_a_token": round(1000 * cpu / tokens, 2),
    }


def _equal(ours: Answers, theirs: Answers) -> dict[str, int]:
    return {"equal": sum(a == b for a, b in zip(ours, theirs, strict=True)), "of": len(ours)}


@torch.no_grad()
def _apart(work: Work, model: PeftModel, drawn: Answers, logprobs: list[list[float]]) -> dict[str, float]:
    """How far vLLM's log-probabilities of its own tokens are from the trainer's."""
    pad = work.tokenizer.pad_token_id
    ids = pad_right([[*prompt, *answer] for prompt, answer in zip(work.prompts, drawn, strict=True)], pad)
    tokens = pad_right(drawn, pad)
    places = places_before(torch.tensor([len(prompt) for prompt in work.prompts]), tokens.shape[1], ids.shape[1])
    mask = torch.arange(tokens.shape[1])[None] < torch.tensor([len(answer) for answer in drawn])[:, None]
    states = states_at(model, ids, places)[mask]
    trainers = token_logprobs(states, tokens[mask], lambda part: next_token_logits(model, part))
    difference = torch.tensor([x for row in logprobs for x in row]) - trainers
    return {
        "nats_a_token": round(float(difference.abs().mean()), 5),
        "largest": round(float(difference.abs().max()), 3),
        "kl_an_answer": round(float(difference.sum()) / len(drawn), 4),
        "beyond_0.2": round(float((difference.exp() - 1).abs().gt(0.2).float().mean()), 4),
    }


def _to_end(row: list[int], last: Sequence[int]) -> list[int]:
    """An answer without what stands behind its end."""
    return next((row[: i + 1] for i, token in enumerate(row) if token in last), row)


if __name__ == "__main__":
    sys.exit(main())
