"""Chats as token ids: the one place where a tokenizer is made ready and an answer is joined to its prompt.

    "<|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\n" | "Hello." "<|im_end|>"
    "User: Hi\\nAssistant:" | " Hello." "</s>"

An answer's ids are always `prompt ids + answer ids + EOS`. The prompt is tokenized alone, so the boundary between prompt and
answer is the same in SFT, in the reward model, in PPO and in evaluation; the answer has the ids that it has behind the
prompt.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlrecipes.errors import UserError, cannot
from rlrecipes.hub.reach import fetched_file, read_object
from rlrecipes.model.eos import Find, use_producible_eos
from rlrecipes.model.padding import release_pad
from rlrecipes.model.plain import Reading, reading, special_tokens
from rlrecipes.model.template import (
    CHAT,
    FIXED,
    PLAIN_TEMPLATE,
    chats,
    check_turns,
    fix_template,
    prompt_text,
    render,
    space_before,
)
from rlrecipes.recipe import UNLEARNED, Comparison, Data, Example, Message, Prompt

if TYPE_CHECKING:
    import torch


# Tokenizers.


PAD = "<|pad|>"
SPARE = ("pad", "reserved", "unused")
"""Words in the names of special tokens that may serve as padding."""


def open_tokenizer(name: str) -> Any:
    """`load_tokenizer`, with an EOS token that the model can produce.

    Raises:
        UserError: there is no tokenizer, it is damaged, or it has no EOS token.
    """
    return open_with_note(name)[0]


def open_with_note(name: str, find: Find = fetched_file) -> tuple[Any, str | None]:
    """`open_tokenizer`, and a sentence on the EOS token that it replaced; None where the model can produce its own.

    `find` gives the files of the weights, which `use_producible_eos` looks at.

    Raises:
        UserError: as `open_tokenizer`.
    """
    try:
        tokenizer = load_tokenizer(name)
    except UserError:
        raise
    except Exception as error:  # each way in which a file is damaged has an error of its own
        choice = "mend its files, or choose another model"
        raise cannot(f"cannot read the tokenizer of '{name}'", error, choice) from None
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"the tokenizer of '{name}' has no EOS token, so no answer could ever end; choose another model"
        )
    return tokenizer, use_producible_eos(tokenizer, name, find)


def load_tokenizer(folder: str | Path) -> Any:
    """The tokenizer of a checkpoint after `prepare`, with the padding on the left.

    Raises:
        UserError: as `prepare`; other errors of Transformers and jinja2 pass through.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    tokenizer.padding_side = "left"
    prepare(tokenizer, str(folder))
    return tokenizer


def prepare(tokenizer: Any, name: str) -> None:
    """Gives a tokenizer a chat template with `FIXED`, the EOS that ends a turn in it, and a pad token of its own.

    PPO cannot learn when to stop if padding looks like EOS, and sampling would not see a prompt's first token if padding
    looks like it. A missing or shared pad token, or one that texts are made of, becomes the unknown token where there is one,
    else a special token that is reserved for such things, else a new token, which needs no embedding.

    Raises:
        UserError: the model's `generation_config.json` is damaged.
        jinja2.TemplateError: its chat template is broken.
    """
    release_pad(tokenizer)
    fix_template(tokenizer)
    declared = _declared_ends(name)
    if tokenizer.chat_template is None:
        tokenizer.chat_template = FIXED + PLAIN_TEMPLATE
    elif declared and (end := _written_end(tokenizer, declared)):
        tokenizer.eos_token = end
    tokenizer.ends, tokenizer.embedded = declared, embedded(name)
    taken = {None, tokenizer.bos_token_id, *written_tokens(tokenizer), *_of_system_turns(tokenizer)}
    if tokenizer.pad_token_id in taken:
        if tokenizer.unk_token_id not in taken:
            tokenizer.pad_token = tokenizer.unk_token
        elif spare := _spare(tokenizer, taken):
            tokenizer.pad_token = spare
        else:
            tokenizer.add_special_tokens({"pad_token": PAD})


def _spare(tokenizer: Any, taken: Set[int | None]) -> str | None:
    """A special token that the model's makers left for padding or later use, and no chat holds."""
    tokens = tokenizer.added_tokens_decoder
    free = [str(tokens[id]) for id in sorted({*tokens} - taken - {*ends(tokenizer)}) if tokens[id].special]
    return next((token for word in SPARE for token in free if word in token.lower()), None)


def written_tokens(tokenizer: Any) -> list[int]:
    """The special tokens of every chat: those that the template writes, and EOS."""
    found = {id for chat in chats(tokenizer, tokenizer.chat_template) for id in tokenizer(chat)["input_ids"]}
    return sorted(found & {*tokenizer.added_tokens_decoder} | {tokenizer.eos_token_id} - {None})


def _of_system_turns(tokenizer: Any) -> set[int]:
    """The special tokens of a chat with a system turn."""
    try:
        chat = render(tokenizer, CHAT, True)
    except Exception:  # a template is a program of its own, and may take no such turn
        return set()
    return {*tokenizer(chat)["input_ids"]} & {*tokenizer.added_tokens_decoder}


def ends(tokenizer: Any) -> tuple[int, ...]:
    """The tokens that end an answer while it is sampled: EOS, and others by which its model says that it ends one."""
    return tuple(dict.fromkeys((tokenizer.eos_token_id, *getattr(tokenizer, "ends", ()))))


def embedded(name: str) -> int | None:
    """How many tokens a model has embeddings for, as its `config.json` has it; None where that does not say.

    Raises:
        UserError: the file is damaged.
    """
    path = fetched_file(name, "config.json")
    config = read_object(path) if path else {}
    text = config.get("text_config")
    count = (text if isinstance(text, dict) else config).get("vocab_size")
    return count if type(count) is int else None


def lacking(tokenizer: Any, count: int) -> tuple[str, str] | None:
    """A token without an embedding, where `count` have one, that chats or texts may become, and which of both; None: none."""
    if chat := [id for id in written_tokens(tokenizer) if id >= count]:
        return str(tokenizer.convert_ids_to_tokens(chat[0])), "of its own chats"
    beyond = {id: token for token, id in tokenizer.get_vocab().items() if id >= count}
    plain = special_tokens(tokenizer, chats(tokenizer, tokenizer.chat_template)[2]) if beyond else None
    text = (token for _, token in sorted(beyond.items()) if plain and not plain.fullmatch(token))
    return next(((token, "that a text may hold") for token in text), None)


def _declared_ends(name: str) -> tuple[int, ...]:
    """EOS as the model's `generation_config.json` has it, or where that has none its `config.json`: one number or several.

    Raises:
        UserError: such a file is damaged.
    """
    for file in ("generation_config.json", "config.json"):
        path = fetched_file(name, file)
        given = read_object(path).get("eos_token_id") if path else None
        if found := [id for id in (given if isinstance(given, list) else [given]) if type(id) is int and id >= 0]:
            return tuple(found)
    return ()


def _written_end(tokenizer: Any, declared: Sequence[int]) -> str | None:
    """The token that the template puts behind an answer, if the model declares that it ends one.

    Gemma's and Phi's tokenizers name another EOS, which these models do not write at the end of a turn.
    """
    behind = render(tokenizer, CHAT[1:], False).rpartition(CHAT[2].content)[2].lstrip()
    tokens = (str(token) for id, token in tokenizer.added_tokens_decoder.items() if id in declared)
    return next((token for token in tokens if behind.startswith(token)), None)


def vocabulary(tokenizer: Any) -> str:
    """16 hex digits of all tokens' ids, EOS and padding: models that differ in them cannot read each other's ids."""
    ids = [sorted(tokenizer.get_vocab().items()), tokenizer.eos_token_id, tokenizer.pad_token_id]
    return hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:16]


# Prompts and answers.


@dataclass(frozen=True)
class Encoded:
    """A prompt and an answer in token ids; the answer ends with EOS."""

    prompt: list[int]
    answer: list[int]

    @property
    def ids(self) -> list[int]:
        return self.prompt + self.answer


def encode_prompt(tokenizer: Any, prompt: Prompt) -> list[int]:
    """The prompt's ids, up to where the answer starts; a template puts BOS itself where its model needs one.

    Raises:
        UserError: the template refuses the prompt, leaves out a turn, or is broken.
    """
    read = read_row(tokenizer, prompt)
    return read.ids(_whole_text(tokenizer, hidden(read, prompt)))


def encode(tokenizer: Any, prompt: Prompt, answer: str) -> Encoded:
    """The ids of a prompt, and those of its answer behind it, with EOS at the end; nothing is cut.

    Raises:
        UserError: as `encode_prompt`.
    """
    read = read_row(tokenizer, prompt, answer)
    text = _whole_text(tokenizer, hidden(read, prompt))
    ids = read.ids(text)
    space = space_before(tokenizer, prompt, answer)
    return Encoded(ids, [*_behind(read, text, ids, space + read.hide(answer)), tokenizer.eos_token_id])


def _whole_text(tokenizer: Any, prompt: Prompt) -> str:
    """A prompt's text, which has the text of every turn."""
    text = prompt_text(tokenizer, prompt)
    check_turns(text, prompt)
    return text


def read_row(tokenizer: Any, prompt: Prompt, *answers: str) -> Reading:
    """How to tokenize a prompt and answers so that the special tokens which they spell are plain text.

    Raises:
        UserError: they spell one, and the tokenizer has no way to do so.
    """
    texts = [*(message.content for message in prompt), *answers]
    return reading(tokenizer, chats(tokenizer, tokenizer.chat_template)[2], texts)


def spelled(tokenizer: Any, data: Data) -> dict[str, int]:
    """How many rows of each kind, on both sides of the split, spell a special token, which is read as plain text."""
    special = special_tokens(tokenizer, chats(tokenizer, tokenizer.chat_template)[2])
    return rows_with(data, lambda text: bool(special.search(text)))


def rows_with(data: Data, holds: Callable[[str], bool]) -> dict[str, int]:
    """How many rows of each kind, on both sides of the split, have a prompt's turn or an answer that `holds`."""
    counts = {
        kind: sum(any(map(holds, (*(message.content for message in prompt), *answers))) for prompt, answers in rows)
        for kind, rows in texts_of(data).items()
    }
    return {kind: count for kind, count in counts.items() if count}


def in_words(counts: Mapping[str, int]) -> str:
    """Rows by kind: "2 demonstrations, 1 prompts"."""
    return ", ".join(f"{count:,} {kind}" for kind, count in counts.items())


def texts_of(data: Data) -> dict[str, list[tuple[Prompt, Sequence[str]]]]:
    """The prompts and answers that a model reads, of each kind, on both sides of the split."""
    sides = (data.train, data.held_out)
    return {
        "demonstrations": [(row.prompt, row.answers[:1]) for side in sides for row in side.demonstrations],
        "prompts": [(row.prompt, ()) for side in sides for row in side.prompts],
        "comparisons": [(row.prompt, (row.chosen, row.rejected)) for side in sides for row in side.comparisons],
        "ratings": [(row.prompt, (row.answer,)) for side in sides for row in side.ratings],
    }


def spelled_note(counts: Mapping[str, int]) -> str:
    """`spelled` in words."""
    told = "special tokens such as '<|im_end|>', or without an embedding, that a text spells are read as plain text"
    return f"{told}: {in_words(counts)}"


def hidden(read: Reading, prompt: Prompt) -> Prompt:
    """A prompt in which the special tokens are hidden that its turns spell."""
    return tuple(Message(message.role, read.hide(message.content)) for message in prompt)


def _behind(read: Reading, prompt: str, prompt_ids: list[int], text: str) -> list[int]:
    """The ids of an answer's text behind the text of its prompt.

    Some tokenizers put a space before every text, which an answer tokenized alone would have, too. Where a token would reach
    over the boundary (`\\n` before `\\n`), the answer stands behind another text.
    """
    for before in (prompt, "\n", "x"):
        ids = prompt_ids if before is prompt else read.ids(before)
        whole = read.ids(before + text)
        if whole[: len(ids)] == ids:
            return whole[len(ids) :]
    return read.ids(text)


def answer_length(tokenizer: Any, demonstrations: Sequence[Example], response_length: int) -> int:
    """The most tokens of an answer, EOS included: `response_length`, or where that is 0 what 99 % of demonstrations need."""
    if response_length:
        return response_length
    lengths = sorted(len(encode(tokenizer, d.prompt, d.answers[0]).answer) for d in demonstrations)
    return lengths[min(len(lengths) - 1, int(0.99 * len(lengths)))]


def every_turn(example: Example) -> list[Example]:
    """A demonstration of each turn of the assistant in a demonstration, as the answer to what stands before it.

    Each is a row of its own: so it has the boundary and the end that it has when it is sampled.
    """
    learned = [
        place
        for place, message in enumerate(example.prompt)
        if place and message.role == "assistant" and place not in example.truth.get(UNLEARNED, ())
    ]
    return [*(Example(example.prompt[:place], (example.prompt[place].content,)) for place in learned), example]


def learned_rows(demonstrations: Sequence[Example], learn: str) -> list[Example]:
    """What SFT learns of demonstrations: their answers, or each turn of the assistant in them, as `sft.learn` says."""
    return [row for example in demonstrations for row in (every_turn(example) if learn == "all" else [example])]


def fitting_examples(tokenizer: Any, examples: Sequence[Example], max_tokens: int) -> list[tuple[Example, Encoded]]:
    """The examples whose prompt and first answer have at most `max_tokens` tokens together."""
    encoded = [(example, encode(tokenizer, example.prompt, example.answers[0])) for example in examples]
    return [(example, ids) for example, ids in encoded if len(ids.ids) <= max_tokens]


def fitting_prompts(tokenizer: Any, examples: Sequence[Example], max_tokens: int) -> list[tuple[Example, list[int]]]:
    """The examples whose prompt alone has at most `max_tokens` tokens."""
    encoded = [(example, encode_prompt(tokenizer, example.prompt)) for example in examples]
    return [(example, ids) for example, ids in encoded if len(ids) <= max_tokens]


def fitting_comparisons(
    tokenizer: Any, comparisons: Sequence[Comparison], max_tokens: int
) -> list[tuple[Comparison, Encoded, Encoded]]:
    """The comparisons of which both sides have at most `max_tokens` tokens, with these."""
    rows = [(c, encode(tokenizer, c.prompt, c.chosen), encode(tokenizer, c.prompt, c.rejected)) for c in comparisons]
    return [row for row in rows if max(len(row[1].ids), len(row[2].ids)) <= max_tokens]


def pad_left(sequences: Sequence[Sequence[int]], pad: int) -> torch.Tensor:
    """Ids `[B, longest sequence]` with the padding in front, as sampling needs prompts."""
    import torch

    width = max(map(len, sequences))
    return torch.tensor([[pad] * (width - len(ids)) + list(ids) for ids in sequences])


def pad_right(sequences: Sequence[Sequence[int]], pad: int) -> torch.Tensor:
    """Ids `[B, longest sequence]` with the padding behind."""
    import torch

    width = max(map(len, sequences))
    return torch.tensor([list(ids) + [pad] * (width - len(ids)) for ids in sequences])


def decode(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of an answer up to its end, without special tokens and the spaces around it."""
    row: list[int] = ids.tolist() if hasattr(ids, "tolist") else list(ids)
    last = set(ends(tokenizer))
    ids = row[: next((place for place, id in enumerate(row) if id in last), len(row))]
    text: str = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text.strip()
