"""One interface to every reward model: text in, scores out. It is an adapter of the policy's base or a model beside it.

    model.scores([model.encode(user("Translate: Hallo"), "Hello.")], batch_size=8) -> [1.37]

A model beside the base has its own tokenizer, so it reads the messages in its own way: through its chat template where it
has one; as a pair of texts where its tokenizer separates pairs (encoders); else as a plain transcript.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from safetensors import safe_open
from transformers import AutoTokenizer

from rlrecipes.errors import UserError, cannot, switch
from rlrecipes.hub.reach import ADAPTER_WEIGHTS
from rlrecipes.model.adapters import adapter, load_adapter
from rlrecipes.model.forward import device, states_at
from rlrecipes.model.loading import empty_scorer, load_scorer, load_scorer_with_missing, model_config, window
from rlrecipes.model.template import PLAIN_TEMPLATE, chat_text, fix_template, is_fixed
from rlrecipes.model.tokens import embedded, encode, hidden, pad_right, read_row
from rlrecipes.profile import ModelSettings
from rlrecipes.recipe import Message, Prompt
from rlrecipes.reward.head import Ensemble, Head, Scorer, load_head, load_scale, members
from rlrecipes.reward.source import TOKENIZERS, RewardSource, find_reward_model
from rlrecipes.run.device import is_devices
from rlrecipes.run.folder import read_json
from rlrecipes.run.processes import divided
from rlrecipes.text import quoted


@torch.no_grad()
def score_answers(
    model: PeftModel,
    read: Callable[[torch.Tensor], torch.Tensor],
    tokenizer: Any,
    pairs: Sequence[tuple[Prompt, str]],
    batch_size: int,
    roles: Sequence[str] = ("reward",),
) -> list[float]:
    """What `read`, such as a head, makes of each (prompt, answer)'s hidden state at the answer's EOS, `batch_size` together.

    `read` takes `[b, N·H]`: the states under the adapters `roles`, side by side. Several processes share the pairs.
    """

    def score(mine: Sequence[tuple[Prompt, str]]) -> list[float]:
        scores: list[float] = []
        for start in range(0, len(mine), batch_size):
            ids = [encode(tokenizer, prompt, answer).ids for prompt, answer in mine[start : start + batch_size]]
            batch = pad_right(ids, tokenizer.pad_token_id).to(device())
            last = torch.tensor([[len(row) - 1] for row in ids], device=batch.device)
            states = []
            for role in roles:
                with adapter(model, role):
                    states.append(states_at(model, batch, last).squeeze(1))
            scores += read(torch.cat(states, -1)).tolist()
        return scores

    return divided(pairs, score)


Row = Mapping[str, Sequence[int]]
"""What a model reads of one text: `input_ids`, and whatever else its tokenizer makes, all of one length."""


@dataclass(frozen=True)
class RewardModel:
    """A sequence classifier with one output, and how it reads a prompt with an answer."""

    model: Any
    encode: Callable[[Prompt, str], Row]
    pad: int | None
    """The id of the padding token; None where the model knows none, so that it reads its score at a text's last token."""
    max_tokens: int
    """The longest text that it can read."""
    tokenizer: Any
    padded: bool = True
    """Whether texts of several lengths may be read together."""

    def scores(self, rows: Sequence[Row], batch_size: int) -> list[float]:
        """Raw scores of whole sequences, `[rows]`, `batch_size` of them read together; several processes share them."""
        return divided(rows, lambda mine: self._scores(mine, batch_size))

    def _scores(self, rows: Sequence[Row], batch_size: int) -> list[float]:
        scores = [0.0] * len(rows)
        for places in self._batches(rows, batch_size):
            for i, score in zip(places, self.read_together([rows[i] for i in places]), strict=True):
                scores[i] = score
        return scores

    @torch.no_grad()
    def read_together(self, batch: Sequence[Row]) -> list[float]:
        """Raw scores of one padded batch, `[rows]`."""
        self.model.eval()
        used = {i for row in batch for i in row["input_ids"]}
        pad = next(i for i in count() if i not in used) if self.pad is None else self.pad
        self.model.config.get_text_config().pad_token_id = pad  # a decoder finds the end of a text by it
        inputs = {
            name: pad_right([row[name] for row in batch], pad if name == "input_ids" else 0).to(device())
            for name in batch[0]
        }
        mask = pad_right([[1] * len(row["input_ids"]) for row in batch], 0).to(device())
        scores: list[float] = self.model(**inputs, attention_mask=mask).logits.squeeze(-1).float().tolist()
        return scores

    def _batches(self, rows: Sequence[Row], batch_size: int) -> Iterator[list[int]]:
        """The places of rows that are read together."""
        lengths = [0 if self.padded else len(row["input_ids"]) for row in rows]
        for length in sorted(set(lengths)):
            places = [i for i, found in enumerate(lengths) if found == length]
            yield from (places[start : start + batch_size] for start in range(0, len(places), batch_size))

    def cut(self, row: Row) -> Row:
        """A row of at most `max_tokens`. It loses what follows its first token, since the answer stands at the end."""
        over = len(row["input_ids"]) - self.max_tokens
        return row if over <= 0 else {name: [*ids[:1], *ids[1 + over :]] for name, ids in row.items()}


def as_policy(model: Any, tokenizer: Any, max_tokens: int) -> RewardModel:
    """A classifier on the policy's base, which reads answers as the policy writes them."""

    def encode_row(prompt: Prompt, answer: str) -> Row:
        return {"input_ids": encode(tokenizer, prompt, answer).ids}

    model.config.use_cache = False
    return RewardModel(model, encode_row, tokenizer.pad_token_id, max_tokens, tokenizer)


def load_sharing(source: RewardSource, model_name: str, settings: ModelSettings, tokenizer: Any) -> RewardModel:
    """An adapter from elsewhere on the policy's own base.

    Raises:
        UserError: the adapter does not fit.
    """
    model = _with_adapter(load_scorer(model_name, settings, tokenizer), source)
    return as_policy(model, tokenizer, window(model_name, settings))


def reader_beside(source: RewardSource) -> RewardModel:
    """A reward model beside the policy's base without its weights: it reads texts as the whole one does, and cannot score.

    Raises:
        UserError: its configuration or its tokenizer cannot be read, or it has no EOS token but needs one.
    """
    tokenizer = _tokenizer(source)
    with _library_errors(source):
        model = empty_scorer(model_config(source.base or source.place))
    return RewardModel(model, _reader(source, tokenizer, model), None, _longest(model, tokenizer), tokenizer)


def load_beside(source: RewardSource, settings: ModelSettings) -> RewardModel:
    """A reward model beside the policy's base, held in memory as the profile says.

    Raises:
        UserError: the model or its tokenizer cannot be loaded, it lacks weights, or it has no EOS token but needs one.
    """
    name = source.base or source.place
    tokenizer = _tokenizer(source)
    with _library_errors(source):
        model, missing = load_scorer_with_missing(name, settings, tokenizer, grow=source.base is not None)
        _check_whole(source, missing)
    model = _with_adapter(model, source) if source.base else model
    model.config.use_cache = False
    pad = _pad(source, model_config(name), tokenizer, model.get_input_embeddings().num_embeddings)
    found = RewardModel(model, _reader(source, tokenizer, model), pad, _longest(model, tokenizer), tokenizer)
    with _library_errors(source):
        probe = [found.cut(_row(tokenizer(text), model)) for text in ("Hello.", "Hello. How are you today? I am well.")]
        return replace(found, padded=_padding_is_harmless(found, probe))


def _check_whole(source: RewardSource, missing: Sequence[str]) -> None:
    """Refuses a model of which some weights are in no file: Transformers draws them at random, and only logs it."""
    own: set[str] = set()
    if source.base:
        with safe_open(Path(source.place) / ADAPTER_WEIGHTS, framework="pt") as file:
            own = {f".{key}" for key in file.keys()}  # noqa: SIM118
    if absent := [key for key in missing if not any(name.endswith(f".{key}") for name in own)]:
        more = f" and {len(absent) - 1} more" if absent[1:] else ""
        raise UserError(
            f"reward.model={source.name} lacks the weights {absent[0]}{more}, so its scores would be random; "
            "save it with all its layers, or choose another model"
        )


def _pad(source: RewardSource, config: Any, tokenizer: Any, size: int) -> int | None:
    """The id that the model takes for padding; -1 and ids beyond its `size` embeddings stand for none.

    An adapter's trainer sets the padding of a base that has none, and saves it with the tokenizer alone.
    """
    of_tokenizer = (tokenizer.pad_token_id, tokenizer.eos_token_id) if source.base else ()
    pads = (getattr(config.get_text_config(), "pad_token_id", None), *of_tokenizer)
    return next((pad for pad in pads if pad is not None and 0 <= pad < size), None)


def _longest(model: Any, tokenizer: Any) -> int:
    """The most tokens of a text.

    RoBERTa's kind counts positions from behind the padding's id, so it has fewer of them. An adapter may put tokens in front.
    """
    limits = [getattr(model.config.get_text_config(), "max_position_embeddings", None), tokenizer.model_max_length]
    for name, table in model.named_modules():
        if name.endswith(".position_embeddings") and (first := getattr(table, "padding_idx", None)) is not None:
            limits.append(len(table.weight) - first - 1)
    virtual = getattr(getattr(model, "active_peft_config", None), "num_virtual_tokens", None) or 0
    return int(min(limit for limit in limits if limit is not None and limit > 0)) - virtual


def _padding_is_harmless(model: RewardModel, rows: Sequence[Row]) -> bool:
    """Whether texts score the same in a padded batch as alone, up to rounding; FNet's and XLNet's kind reads the padding."""
    alone = [score for row in rows for score in model.read_together([row])]
    error = max(abs(a - b) for a, b in zip(alone, model.read_together(rows), strict=True))
    return error <= max(1e-3, 8 * torch.finfo(model.model.dtype).eps) * max(map(abs, alone))


class Learned(NamedTuple):
    """The learned part of a reward, opened."""

    head: Head | None
    """Reads scores off hidden states that a caller may have already; None for a model beside the base."""
    score: Scorer
    disagreement: Scorer | None = None
    """The standard deviation of the members' scores; None where there is one reward model."""


def open_learned(
    folder: Path, model: PeftModel, tokenizer: Any, settings: ModelSettings, batch_size: int, role: str = "reward"
) -> Learned:
    """The learned reward that the finished reward stage in `folder` left, opened beside the roles on `model`.

    Adapters of the base become the roles that the head names, the first of them `role`. Otherwise this loads a second
    model, as `settings` say.

    Raises:
        UserError: a file is damaged, or the model beside cannot be loaded; from the scorer: a score is NaN or infinite.
    """
    if shares_base(folder):
        head = load_head(folder)
        roles = head.roles(role)
        for place, name in zip(members(folder), roles, strict=True):
            load_adapter(model, place / "adapter", name)

        def reading(read: Callable[[torch.Tensor], torch.Tensor]) -> Scorer:
            return lambda pairs: _finite(pairs, score_answers(model, read, tokenizer, pairs, batch_size, roles))

        return Learned(head, reading(head), reading(head.disagreement) if isinstance(head, Ensemble) else None)
    source = find_reward_model(read_json(folder / "done.json").get("settings", {})["reward.model"])
    beside, (mean, std) = load_beside(source, settings), load_scale(folder)

    def score(pairs: Sequence[tuple[Prompt, str]]) -> list[float]:
        rows = [beside.cut(beside.encode(prompt, answer)) for prompt, answer in pairs]
        return _finite(pairs, [(score - mean) / std for score in beside.scores(rows, batch_size)])

    return Learned(None, score)


def _finite(pairs: Sequence[tuple[Prompt, str]], scores: list[float]) -> list[float]:
    """The scores, if they are finite.

    Raises:
        UserError: one is not; the sentence names the answer.
    """
    for (prompt, answer), score in zip(pairs, scores, strict=True):
        if not math.isfinite(score):
            raise UserError(
                f"the reward model gave {score} on the answer {quoted(answer)} to {quoted(prompt[-1].content)}; "
                f"make the reward stage again with {switch('force')}, or choose another reward.model"
            )
    return scores


def shares_base(folder: Path) -> bool:
    """Whether the finished reward stage in `folder` left an adapter of the policy's base, rather than a model beside it."""
    return (folder / "adapter").is_dir()


def _with_adapter(model: Any, source: RewardSource) -> Any:
    with _library_errors(source):
        return PeftModel.from_pretrained(model, source.place)


def _tokenizer(source: RewardSource) -> Any:
    own = source.base is None or any((Path(source.place) / name).is_file() for name in TOKENIZERS)
    with _library_errors(source):
        tokenizer = AutoTokenizer.from_pretrained(source.place if own else str(source.base), trust_remote_code=False)
    tokenizer.embedded = (
        embedded(source.place) if source.base is None else None
    )  # an adapter's base grows to its tokens
    return tokenizer


def _reader(source: RewardSource, tokenizer: Any, model: Any) -> Callable[[Prompt, str], Row]:
    def chat(prompt: Prompt, answer: str) -> Row:
        read = read_row(tokenizer, prompt, answer)
        text = chat_text(tokenizer, hidden(read, (*prompt, Message("assistant", answer))))
        return _row(read.row(text, add_special_tokens=False), model)

    def pair(prompt: Prompt, answer: str) -> Row:
        read = read_row(tokenizer, prompt, answer)
        return _row(read.row("\n".join(message.content for message in hidden(read, prompt)), read.hide(answer)), model)

    def transcript(prompt: Prompt, answer: str) -> Row:
        return {"input_ids": encode(tokenizer, prompt, answer).ids}

    ours = is_fixed(tokenizer.chat_template)  # our own adapter: it reads answers as the policy writes them
    fix_template(tokenizer)
    if tokenizer.chat_template is not None and not ours:
        return chat
    pairs = tokenizer.num_special_tokens_to_add(pair=True) > tokenizer.num_special_tokens_to_add(pair=False)
    if pairs and not ours and not _is_decoder(model):
        return pair
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"reward.model={source.name} has neither a chat template nor an EOS token, so nothing says how it reads an "
            "answer; choose another model"
        )
    tokenizer.chat_template = tokenizer.chat_template or PLAIN_TEMPLATE
    return transcript


def _is_decoder(model: Any) -> bool:
    """A decoder's head is called `score` in Transformers; its tokenizer may begin both texts of a pair with BOS."""
    return hasattr(model, "score")


def _row(encoded: Mapping[str, Sequence[int]], model: Any) -> Row:
    """What the model reads of what its tokenizer made: segments only where it has embeddings for two."""
    segments = not _is_decoder(model) and getattr(model.config, "type_vocab_size", None) != 1
    return {name: encoded[name] for name in ("input_ids", "token_type_ids")[: 1 + segments] if name in encoded}


@contextmanager
def _library_errors(source: RewardSource) -> Iterator[None]:
    """Turns whatever the libraries raise over damaged or mismatched files into one sentence."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if is_devices(error):
            raise
        raise cannot(f"cannot use reward.model={source.name}", error, "choose another model") from None
