"""Chats as token ids: the one place where a chat template is applied and an answer is joined to its prompt.

An answer's ids are always `prompt ids + answer ids + EOS`, each tokenized alone, so the boundary between prompt and
answer is the same in SFT, in the reward model, in PPO and in evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from rlrecipes.recipe import Comparison, Example, Prompt

PLAIN_TEMPLATE = (
    "{% for m in messages %}{{ m.role | capitalize }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant: {% endif %}"
)
"""For models that bring no chat template of their own."""

PAD = "<|pad|>"


@dataclass(frozen=True)
class Encoded:
    """A prompt and an answer in token ids; the answer ends with EOS."""

    prompt: list[int]
    answer: list[int]

    @property
    def ids(self) -> list[int]:
        return self.prompt + self.answer


def load_tokenizer(folder: str | Path) -> Any:
    """The tokenizer of a checkpoint, with a pad token that is not EOS and a chat template.

    PPO cannot learn when to stop if padding looks like EOS. A missing or shared pad token becomes the unknown token where
    there is one, else a new token (the model is given an embedding for it when it is loaded).
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        if tokenizer.unk_token_id is not None and tokenizer.unk_token_id != tokenizer.eos_token_id:
            tokenizer.pad_token = tokenizer.unk_token
        else:
            tokenizer.add_special_tokens({"pad_token": PAD})
    if tokenizer.chat_template is None:
        tokenizer.chat_template = PLAIN_TEMPLATE
    return tokenizer


def encode_prompt(tokenizer: Any, prompt: Prompt) -> list[int]:
    """The prompt through the chat template, up to where the answer starts."""
    messages = [{"role": message.role, "content": message.content} for message in prompt]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    begins = tokenizer.bos_token_id is not None and tokenizer.chat_template == PLAIN_TEMPLATE
    return [tokenizer.bos_token_id, *ids] if begins else ids


def encode(tokenizer: Any, prompt: Prompt, answer: str) -> Encoded:
    ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
    return Encoded(encode_prompt(tokenizer, prompt), [*ids, tokenizer.eos_token_id])


def decode(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of an answer, without special tokens."""
    text: str = tokenizer.decode(ids, skip_special_tokens=True)
    return text.strip()


def fitting_examples(tokenizer: Any, examples: Sequence[Example], longest: int) -> list[tuple[Example, Encoded]]:
    """The examples whose prompt and first answer have at most `longest` tokens together."""
    encoded = [(example, encode(tokenizer, example.prompt, example.answers[0])) for example in examples]
    return [(example, ids) for example, ids in encoded if len(ids.ids) <= longest]


def fitting_prompts(tokenizer: Any, examples: Sequence[Example], longest: int) -> list[tuple[Example, list[int]]]:
    """The examples whose prompt alone has at most `longest` tokens."""
    encoded = [(example, encode_prompt(tokenizer, example.prompt)) for example in examples]
    return [(example, ids) for example, ids in encoded if len(ids) <= longest]


def fitting_comparisons(
    tokenizer: Any, comparisons: Sequence[Comparison], longest: int
) -> list[tuple[Comparison, list[int], list[int]]]:
    """The comparisons of which both sides have at most `longest` tokens, with their ids."""
    rows = [
        (c, encode(tokenizer, c.prompt, c.chosen).ids, encode(tokenizer, c.prompt, c.rejected).ids) for c in comparisons
    ]
    return [row for row in rows if max(len(row[1]), len(row[2])) <= longest]


def pad_left(sequences: Sequence[Sequence[int]], pad: int) -> torch.Tensor:
    """Ids `[batch, longest]` with the padding in front, as generation wants prompts."""
    longest = max(map(len, sequences))
    return torch.tensor([[pad] * (longest - len(ids)) + list(ids) for ids in sequences])


def pad_right(sequences: Sequence[Sequence[int]], pad: int) -> torch.Tensor:
    """Ids `[batch, longest]` with the padding behind."""
    longest = max(map(len, sequences))
    return torch.tensor([list(ids) + [pad] * (longest - len(ids)) for ids in sequences])
