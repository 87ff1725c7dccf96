"""How usual answers are to the bare base: text that no corpus has costs it many nats.

A reward that pays for odd text raises the perplexity; one that pays for stock phrases lowers it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from peft import PeftModel

from rlrecipes.metrics import bootstrap
from rlrecipes.model.adapters import adapter
from rlrecipes.model.forward import device, next_token_logits, states_at
from rlrecipes.model.likelihood import token_logprobs
from rlrecipes.model.tokens import Encoded, encode, pad_right
from rlrecipes.policy.answers import Answer, Voice
from rlrecipes.policy.rollout import places_before
from rlrecipes.recipe import Example
from rlrecipes.run.processes import divided


def perplexity(voice: Voice, answers: Sequence[Answer], examples: Sequence[Example], size: int) -> dict[str, float]:
    """The perplexity of all answers' tokens under the base without an adapter, with its interval over prompts.

    EOS counts where the answer came to it. `size` answers are read at a time. Empty where there is no token.
    """
    rows = [
        row if answer.ended else replace(row, answer=row.answer[:-1])
        for answer, example in zip(answers, examples, strict=True)
        for row in [encode(voice.tokenizer, example.prompt, answer.text)]
    ]
    rows = sorted((row for row in rows if row.answer), key=lambda row: len(row.ids))
    with adapter(voice.model, None):
        nats = divided(
            rows, lambda mine: [each for i in range(0, len(mine), size) for each in _nats(voice, mine[i : i + size])]
        )
    statistics = [(cost, float(len(row.answer))) for cost, row in zip(nats, rows, strict=True)]
    return bootstrap(statistics, lambda sums: math.exp(min(sums[0] / sums[1], 700))).as_json() if rows else {}


def _nats(voice: Voice, rows: Sequence[Encoded]) -> list[float]:
    """Each answer's negative log-probability behind its prompt."""
    assert isinstance(voice.model, PeftModel)
    pad = voice.tokenizer.pad_token_id
    ids, tokens = (pad_right(part, pad).to(device()) for part in ([r.ids for r in rows], [r.answer for r in rows]))
    asked, said = (
        torch.tensor(part, device=ids.device)
        for part in ([len(row.prompt) for row in rows], [len(row.answer) for row in rows])
    )
    mask = torch.arange(tokens.shape[1], device=ids.device) < said[:, None]
    states = states_at(voice.model, ids, places_before(asked, tokens.shape[1], ids.shape[1]))
    flat = token_logprobs(states[mask], tokens[mask], lambda part: next_token_logits(voice.model, part))
    nats: list[float] = [-part.sum().item() for part in flat.split(said.tolist())]
    return nats
