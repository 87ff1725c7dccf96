"""One interface to every reward model: text in, scores out. It is an adapter of the policy's base or a model beside it.

    model.scores([model.encode(user("Translate: Hallo"), "Hello.")], batch_size=8) -> [1.37]

A model beside the base has its own tokenizer, so it reads the messages in its own way: through its chat template where it
has one; as a pair of texts where its tokenizer separates pairs (encoders); else as a plain transcript.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, AutoTokenizer

from rlrecipes.errors import UserError, cannot
from rlrecipes.hub.reach import ADAPTER_WEIGHTS
from rlrecipes.model.adapters import adapter, load_adapter, stage_file
from rlrecipes.model.forward import device, states_at
from rlrecipes.model.loading import load_scorer, window
from rlrecipes.model.template import PLAIN_TEMPLATE, chat_text, fix_template, is_fixed
from rlrecipes.model.tokens import encode, hidden, pad_right, read_row
from rlrecipes.profile import ModelSettings
from rlrecipes.recipe import Message, Prompt
from rlrecipes.reward.source import TOKENIZERS, RewardSource, find_reward_model
from rlrecipes.run.folder import read_json


@dataclass(frozen=True)
class ScoreHead:
    """The reward model's head and the scale of its scores over the demonstrations."""

    weight: torch.Tensor
    """`[1, H]`"""
    mean: float
    std: float

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        """Standardised scores `[B]` of the last tokens' hidden states `[B, H]`."""
        return (nn.functional.linear(states.float(), self.weight).squeeze(-1) - self.mean) / self.std


def load_score_head(folder: Path) -> ScoreHead:
    """The head beside a reward adapter, with its scale.

    Raises:
        UserError: the weights or the scale are damaged.
    """
    weights = folder / "adapter" / ADAPTER_WEIGHTS
    with stage_file(weights, folder):
        (weight,) = (tensor for key, tensor in load_file(weights).items() if key.endswith("score.weight"))
    return ScoreHead(weight.float().to(device()), *load_scale(folder))


def load_scale(folder: Path) -> tuple[float, float]:
    """Mean and standard deviation of a reward model's scores over the demonstrations.

    Raises:
        UserError: the file that holds them is damaged.
    """
    path = folder / "scale.json"
    with stage_file(path, folder):
        scale = json.loads(path.read_text(encoding="utf-8"))
        return float(scale["mean"]), float(scale["std"])


@torch.no_grad()
def score_answers(
    model: PeftModel,
    head: ScoreHead,
    tokenizer: Any,
    pairs: Sequence[tuple[Prompt, str]],
    batch_size: int,
) -> list[float]:
    """The reward adapter's standardised score of each (prompt, answer), read at the answer's EOS, `batch_size` together."""
    scores: list[float] = []
    with adapter(model, "reward"):
        for start in range(0, len(pairs), batch_size):
            ids = [encode(tokenizer, prompt, answer).ids for prompt, answer in pairs[start : start + batch_size]]
            batch = pad_right(ids, tokenizer.pad_token_id).to(device())
            last = torch.tensor([[len(row) - 1] for row in ids], device=batch.device)
            scores += head(states_at(model, batch, last).squeeze(1)).tolist()
    return scores


Row = Mapping[str, Sequence[int]]
"""What a model reads of one text: `input_ids`, and whatever else its tokenizer makes, all of one length."""
Scorer = Callable[[Sequence[tuple[Prompt, str]]], list[float]]
"""Standardised scores of prompts with their answers."""


@dataclass(frozen=True)
class RewardModel:
    """A sequence classifier with one output, and how it reads a prompt with an answer."""

    model: Any
    encode: Callable[[Prompt, str], Row]
    pad: int
    """The id of the padding token."""
    max_tokens: int
    """The longest text that it can read."""

    @torch.no_grad()
    def scores(self, rows: Sequence[Row], batch_size: int) -> list[float]:
        """Raw scores of whole sequences, `[rows]`, `batch_size` of them read together."""
        self.model.eval()
        scores: list[float] = []
        for start in range(0, len(rows), batch_size):
            batch = rows[start : start + batch_size]
            inputs = {
                name: pad_right([row[name] for row in batch], self.pad if name == "input_ids" else 0).to(device())
                for name in batch[0]
            }
            mask = pad_right([[1] * len(row["input_ids"]) for row in batch], 0).to(device())
            logits = self.model(**inputs, attention_mask=mask).logits
            scores += logits.squeeze(-1).float().tolist()
        return scores

    def cut(self, row: Row) -> Row:
        """A row of at most `max_tokens`. It loses what follows its first token, since the answer stands at the end."""
        over = len(row["input_ids"]) - self.max_tokens
        return row if over <= 0 else {name: [*ids[:1], *ids[1 + over :]] for name, ids in row.items()}


def as_policy(model: Any, tokenizer: Any, max_tokens: int) -> RewardModel:
    """A classifier on the policy's base, which reads answers as the policy writes them."""

    def encode_row(prompt: Prompt, answer: str) -> Row:
        return {"input_ids": encode(tokenizer, prompt, answer).ids}

    model.config.use_cache = False
    return RewardModel(model, encode_row, tokenizer.pad_token_id, max_tokens)


def load_sharing(source: RewardSource, model_name: str, settings: ModelSettings, tokenizer: Any) -> RewardModel:
    """An adapter from elsewhere on the policy's own base.

    Raises:
        UserError: the adapter does not fit.
    """
    model = _with_adapter(load_scorer(model_name, settings, tokenizer), source)
    return as_policy(model, tokenizer, window(model_name, settings))


def load_beside(source: RewardSource, settings: ModelSettings) -> RewardModel:
    """A reward model beside the policy's base, held in memory as the profile says.

    Raises:
        UserError: the model or its tokenizer cannot be loaded, or it has neither a padding token nor EOS.
    """
    tokenizer = _tokenizer(source)
    read = _reader(tokenizer)
    with _library_errors(source):
        model = load_scorer(source.base or source.place, settings, tokenizer, grow=source.base is not None)
    model = _with_adapter(model, source) if source.base else model
    model.config.use_cache = False
    positions = getattr(model.config, "max_position_embeddings", None) or tokenizer.model_max_length
    return RewardModel(model, read, tokenizer.pad_token_id, min(positions, tokenizer.model_max_length))


def open_learned(
    folder: Path, model: PeftModel, tokenizer: Any, settings: ModelSettings, batch_size: int
) -> tuple[ScoreHead | None, Scorer]:
    """The learned reward that the finished reward stage in `folder` left, opened beside the roles on `model`.

    An adapter of the base becomes the role `reward`; its head is returned too, since a caller may have the hidden states
    already. Otherwise this loads a second model, as `settings` say, and returns no head.

    Raises:
        UserError: a file is damaged, or the model beside cannot be loaded.
    """
    if shares_base(folder):
        load_adapter(model, folder / "adapter", "reward")
        head = load_score_head(folder)
        return head, lambda pairs: score_answers(model, head, tokenizer, pairs, batch_size)
    source = find_reward_model(read_json(folder / "done.json").get("settings", {})["reward.model"])
    beside, (mean, std) = load_beside(source, settings), load_scale(folder)

    def score(pairs: Sequence[tuple[Prompt, str]]) -> list[float]:
        rows = [beside.cut(beside.encode(prompt, answer)) for prompt, answer in pairs]
        return [(score - mean) / std for score in beside.scores(rows, batch_size)]

    return None, score


def shares_base(folder: Path) -> bool:
    """Whether the finished reward stage in `folder` left an adapter of the policy's base, rather than a model beside it."""
    return (folder / "adapter").is_dir()


def _with_adapter(model: Any, source: RewardSource) -> Any:
    with _library_errors(source):
        return PeftModel.from_pretrained(model, source.place)


def _tokenizer(source: RewardSource) -> Any:
    """With the checkpoint's own padding token: a decoder reads its score at the last token that is not padding."""
    own = source.base is None or any((Path(source.place) / name).is_file() for name in TOKENIZERS)
    name = source.place if own else str(source.base)
    with _library_errors(source):
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        pad = AutoConfig.from_pretrained(source.base or source.place, trust_remote_code=False).pad_token_id
    tokenizer.pad_token_id = next(
        (i for i in (pad, tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), None
    )
    if tokenizer.pad_token_id is None:
        raise UserError(f"reward.model={source.name} has neither a padding token nor EOS; choose another model")
    return tokenizer


def _reader(tokenizer: Any) -> Callable[[Prompt, str], Row]:
    def chat(prompt: Prompt, answer: str) -> Row:
        read = read_row(tokenizer, prompt, answer)
        text = chat_text(tokenizer, hidden(read, (*prompt, Message("assistant", answer))))
        return _row(read.row(text, add_special_tokens=False))

    def pair(prompt: Prompt, answer: str) -> Row:
        read = read_row(tokenizer, prompt, answer)
        return _row(read.row("\n".join(message.content for message in hidden(read, prompt)), read.hide(answer)))

    def transcript(prompt: Prompt, answer: str) -> Row:
        return {"input_ids": encode(tokenizer, prompt, answer).ids}

    if is_fixed(tokenizer.chat_template):  # our own adapter: it reads answers as the policy writes them
        return transcript
    fix_template(tokenizer)
    if tokenizer.chat_template is not None:
        return chat
    if tokenizer.num_special_tokens_to_add(pair=True) > tokenizer.num_special_tokens_to_add(pair=False):
        return pair
    tokenizer.chat_template = PLAIN_TEMPLATE
    return transcript


def _row(encoded: Mapping[str, Sequence[int]]) -> Row:
    return {name: ids for name, ids in encoded.items() if name != "attention_mask"}


@contextmanager
def _library_errors(source: RewardSource) -> Iterator[None]:
    """Turns whatever the libraries raise over damaged or mismatched files into one sentence."""
    try:
        yield
    except (UserError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise cannot(f"cannot use reward.model={source.name}", error, "choose another model") from None
