"""Chats as token ids: the one place where a chat template is made ready and an answer is joined to its prompt.

    "<|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\n" | "Hello." "<|im_end|>"
    "User: Hi\\nAssistant:" | " Hello." "</s>"

An answer's ids are always `prompt ids + answer ids + EOS`. The prompt is tokenized alone, so the boundary between prompt and
answer is the same in SFT, in the reward model, in PPO and in evaluation; the answer has the ids that it has behind the
prompt. No prompt ends in a space: most tokenizers join it to the word behind it, and a model never saw a word without it.
The variables that a template may read beside the messages stand in front of it and are saved with it, so everybody who
applies it gets the prompts of training.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlrecipes.errors import UserError, first_line
from rlrecipes.hub.reach import fetched_file, read_object
from rlrecipes.model.eos import Find, use_producible_eos
from rlrecipes.recipe import Comparison, Example, Message, Prompt
from rlrecipes.text import quoted

if TYPE_CHECKING:
    import torch


# Templates.


PLAIN_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m.role | capitalize }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
"""For models that bring no chat template of their own. Without a BOS token, nothing stands for it."""
TODAY = datetime(2024, 7, 26)
"""The date that templates see, Llama's own default; with the real date, prompts would change from day to day."""
CODES = ("%A", "%a", "%B", "%b", "%d", "%-d", "%H", "%j", "%M", "%m", "%S", "%Y", "%y")
"""Date codes that `strftime_now` replaces in a template; a macro cannot call Python's `strftime`."""
_REPLACE_CODES = "".join(f" | replace('{code}', '{TODAY.strftime(code)}')" for code in CODES)
FIXED = (
    "{% set enable_thinking = false %}{% set thinking = false %}"
    f"{{% set date_string = '{TODAY:%d %b %Y}' %}}"
    f"{{% macro strftime_now(format) %}}{{{{ format{_REPLACE_CODES} }}}}{{% endmacro %}}\n"
)
"""Stands in front of every template. It turns thinking off; where a template then puts an empty block of thought before an
answer, the block is part of the prompt in every stage. Transformers drops the newline at its end."""
SYSTEM_TO_USER = (
    "{% if messages | length > 1 and messages[0].role == 'system' and messages[1].role == 'user' %}"
    "{% set messages = [{'role': 'user', 'content': messages[0].content ~ '\\n\\n' ~ messages[1].content}] + messages[2:] %}"
    "{% endif %}\n"
)
"""Follows `FIXED` where a template takes no system turn: puts that turn's text at the start of the first user turn."""
NO_SPACE = (
    "{% set chat %}\n",
    "{% endset %}{{ chat.rstrip(' ') if add_generation_prompt else chat }}",
)
"""Stand around a template whose prompts end in a space, and take it off."""
CHAT = Message("system", "Be kind."), Message("user", "Hi"), Message("assistant", "Hello")
"""Turns to try a template with."""


def fix_template(tokenizer: Any) -> None:
    """Puts `FIXED` in front of a tokenizer's chat template; of several templates only the default one stays.

    A template that starts with `FIXED`, as ours do when they are saved and read again, stays as it is.
    """
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    if template is None or is_fixed(template):
        tokenizer.chat_template = template
        return
    tokenizer.chat_template = FIXED + template
    if not _accepts(tokenizer, CHAT[1:2]):
        return
    if not _accepts(tokenizer, CHAT[:2]):
        template = SYSTEM_TO_USER + template
    if _render(tokenizer, CHAT[1:2], True).endswith(" "):
        template = template.removesuffix("\n").join(NO_SPACE)  # Jinja, too, drops a last newline
    tokenizer.chat_template = FIXED + template


def is_fixed(template: str | None) -> bool:
    """Whether a template comes from `fix_template`."""
    return template is not None and template.startswith(FIXED)


def _accepts(tokenizer: Any, messages: Prompt) -> bool:
    try:
        _render(tokenizer, messages, True)
    except Exception:  # a template is a program of its own, and fails as one
        return False
    return True


def _render(tokenizer: Any, messages: Prompt, add_generation_prompt: bool) -> str:
    turns = [message._asdict() for message in messages]
    text: str = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=add_generation_prompt)
    return text


# Tokenizers.


PAD = "<|pad|>"


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
        raise UserError(
            f"cannot read the tokenizer of '{name}': {first_line(error)}; mend its files, or choose another model"
        ) from None
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

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.padding_side = "left"
    prepare(tokenizer, str(folder))
    return tokenizer


def prepare(tokenizer: Any, name: str) -> None:
    """Gives a tokenizer a chat template with `FIXED`, the EOS that ends a turn in it, and a pad token that is not EOS.

    PPO cannot learn when to stop if padding looks like EOS. A missing or shared pad token becomes the unknown token where
    there is one, else a new token (the model is given an embedding for it when it is loaded).

    Raises:
        UserError: the model's `generation_config.json` is damaged.
        jinja2.TemplateError: its chat template is broken.
    """
    fix_template(tokenizer)
    if tokenizer.chat_template is None:
        tokenizer.chat_template = FIXED + PLAIN_TEMPLATE
    elif end := _declared_end(tokenizer, name):
        tokenizer.eos_token = end
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        if tokenizer.unk_token_id is not None and tokenizer.unk_token_id != tokenizer.eos_token_id:
            tokenizer.pad_token = tokenizer.unk_token
        else:
            tokenizer.add_special_tokens({"pad_token": PAD})


def _declared_end(tokenizer: Any, name: str) -> str | None:
    """The token that the template puts behind an answer, if the model's `generation_config.json` says that it ends one.

    Gemma's and Phi's tokenizers name another EOS, which these models do not write at the end of a turn.
    """
    path = fetched_file(name, "generation_config.json")
    ends = read_object(path).get("eos_token_id") if path else None
    if not isinstance(ends, list):
        return None
    chat = (Message("user", "Hi"), Message("assistant", "Hello"))
    behind = _render(tokenizer, chat, add_generation_prompt=False).rpartition("Hello")[2].lstrip()
    tokens = {i: str(token) for i, token in tokenizer.added_tokens_decoder.items() if i in ends}
    return next((token for token in tokens.values() if behind.startswith(token)), None)


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


def chat_text(tokenizer: Any, messages: Prompt, add_generation_prompt: bool = False) -> str:
    """The messages through the chat template.

    Raises:
        UserError: the template refuses them, or is broken.
    """
    try:
        return _render(tokenizer, messages, add_generation_prompt)
    except Exception as error:  # see `_accepts`
        roles = ", ".join(message.role for message in messages)
        raise UserError(
            f"the model's chat template refuses the prompt {quoted(messages[-1].content)} with the turns {roles}: "
            f"{first_line(error)}; mend or leave out such rows, or choose another model"
        ) from None


def prompt_text(tokenizer: Any, prompt: Prompt) -> str:
    """The prompt through the chat template, up to where the answer starts.

    Raises:
        UserError: the template refuses the prompt, or is broken.
    """
    return chat_text(tokenizer, prompt, add_generation_prompt=True)


def encode_prompt(tokenizer: Any, prompt: Prompt) -> list[int]:
    """The prompt's ids, up to where the answer starts; a template puts BOS itself where its model needs one.

    Raises:
        UserError: the template refuses the prompt, or is broken.
    """
    ids: list[int] = tokenizer(prompt_text(tokenizer, prompt), add_special_tokens=False)["input_ids"]
    return ids


def encode(tokenizer: Any, prompt: Prompt, answer: str) -> Encoded:
    """The ids of a prompt, and those of its answer behind it, with EOS at the end; nothing is cut.

    Raises:
        UserError: the template refuses the prompt, or is broken.
    """
    text = prompt_text(tokenizer, prompt)
    ids = _ids(tokenizer, text)
    return Encoded(ids, [*_behind(tokenizer, text, ids, answer), tokenizer.eos_token_id])


def _ids(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _behind(tokenizer: Any, prompt: str, prompt_ids: list[int], answer: str) -> list[int]:
    """The ids of an answer behind the text of its prompt.

    Some tokenizers put a space before every text, which an answer tokenized alone would have, too. Where a token would reach
    over the boundary (`\\n` before `\\n`), the answer stands behind another text.
    """
    text = _space(tokenizer, tokenizer.chat_template) + answer if answer else ""
    for before in (prompt, "\n", "x"):
        ids = prompt_ids if before is prompt else _ids(tokenizer, before)
        whole = _ids(tokenizer, before + text)
        if whole[: len(ids)] == ids:
            return whole[len(ids) :]
    return _ids(tokenizer, text)


@lru_cache(maxsize=8)
def _space(tokenizer: Any, template: str) -> str:
    """The spaces that a chat template has between a prompt, which does not end in one, and an answer."""
    try:
        prompt, chat = _render(tokenizer, CHAT[1:2], True), _render(tokenizer, CHAT[1:], False)
    except Exception:  # see `_accepts`; the prompts themselves are refused then
        return ""
    if not chat.startswith(prompt):  # a thought, for one, that stands in the prompt alone
        return " " if NO_SPACE[1] in template else ""
    space = chat.removeprefix(prompt).partition(CHAT[2].content)[0]
    return "" if space.strip(" ") else space


def answer_length(tokenizer: Any, demonstrations: Sequence[Example], response_length: int) -> int:
    """The most tokens of an answer, EOS included: `response_length`, or where that is 0 what 99 % of demonstrations need."""
    if response_length:
        return response_length
    lengths = sorted(len(encode(tokenizer, d.prompt, d.answers[0]).answer) for d in demonstrations)
    return lengths[min(len(lengths) - 1, int(0.99 * len(lengths)))]


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
) -> list[tuple[Comparison, list[int], list[int]]]:
    """The comparisons of which both sides have at most `max_tokens` tokens, with their ids."""
    rows = [
        (c, encode(tokenizer, c.prompt, c.chosen).ids, encode(tokenizer, c.prompt, c.rejected).ids) for c in comparisons
    ]
    return [row for row in rows if max(len(row[1]), len(row[2])) <= max_tokens]


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
    """The text of an answer, without special tokens and the spaces around it."""
    text: str = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text.strip()
