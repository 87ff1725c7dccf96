"""A model's chat template, made ready so that everybody who applies it gets the prompts of training.

    "{{ bos_token }}User: Hi\\nAssistant:"

The variables that a template may read beside the messages stand in front of it and are saved with it. No prompt ends in a
space: most tokenizers join it to the word behind it, and a model never saw a word without it.
"""

from __future__ import annotations

from datetime import datetime
from functools import lru_cache
from typing import Any

import regex

from rlrecipes.errors import UserError, first_line
from rlrecipes.recipe import Message, Prompt
from rlrecipes.text import LETTER, UNSPACED, characters, quoted

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
PARTS = (
    "{% set parted = namespace(turns=[]) %}{% for turn in messages %}"
    "{% set parts = [{'type': 'text', 'text': turn.content}] if turn.content is string else turn.content %}"
    "{% set parted.turns = parted.turns + [dict(turn, content=parts)] %}{% endfor %}{% set messages = parted.turns %}\n"
)
"""Stands right before a template that takes a turn as a list of parts, as those of models that also see pictures: of a plain
text such a template writes nothing."""
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
    if not _takes(tokenizer, template, CHAT[1:2]):
        if not _takes(tokenizer, PARTS + template, CHAT[1:2]) or "'type'" in render(tokenizer, CHAT[1:2], True):
            tokenizer.chat_template = FIXED + template  # it cuts or leaves out any text; `check_turns` tells
            return
        template = PARTS + template
    if not _takes(tokenizer, template, CHAT[:2]):
        template = SYSTEM_TO_USER + template
    if render(tokenizer, CHAT[1:2], True).endswith(" "):
        template = template.removesuffix("\n").join(NO_SPACE)  # Jinja, too, drops a last newline
    tokenizer.chat_template = FIXED + template


def is_fixed(template: str | None) -> bool:
    """Whether a template comes from `fix_template`."""
    return template is not None and template.startswith(FIXED)


def _takes(tokenizer: Any, template: str, messages: Prompt) -> bool:
    """Gives a tokenizer a template behind `FIXED`, and says whether it takes the turns and leaves none out."""
    tokenizer.chat_template = FIXED + template
    try:
        text = render(tokenizer, messages, True)
    except Exception:  # a template is a program of its own, and fails as one
        return False
    return all(message.content in text for message in messages)


def render(tokenizer: Any, messages: Prompt, add_generation_prompt: bool, **options: Any) -> str:
    """The messages through the chat template; its errors, and those of jinja2, pass through."""
    turns = [message._asdict() for message in messages]
    text: str = tokenizer.apply_chat_template(
        turns, tokenize=False, add_generation_prompt=add_generation_prompt, **options
    )
    return text


def chat_text(tokenizer: Any, messages: Prompt, add_generation_prompt: bool = False, **options: Any) -> str:
    """The messages through the chat template.

    Raises:
        UserError: the template refuses them, or is broken.
    """
    try:
        return render(tokenizer, messages, add_generation_prompt, **options)
    except Exception as error:  # see `_takes`
        roles = ", ".join(message.role for message in messages)
        raise UserError(
            f"the model's chat template refuses the prompt {quoted(messages[-1].content)} with the turns {roles}: "
            f"{first_line(error)}; mend or leave out such rows, or choose another model"
        ) from None


def check_turns(text: str, prompt: Prompt) -> None:
    """Refuses a prompt's text that lacks the text of one of its turns; neither spaces count nor thoughts before an answer.

    Raises:
        UserError: with the turn.
    """
    for place, (role, content) in enumerate(prompt):
        said = content.rpartition("</think>")[2] if role == "assistant" else content
        if said not in text and "".join(said.split()) not in "".join(text.split()):
            turns = "1 turn" if len(prompt) == 1 else f"{len(prompt)} turns"
            raise UserError(
                f"the model's chat template writes a prompt of {turns} without the text of turn {place + 1} "
                f"({role}), or with another; mend the template, leave out rows with such turns, or choose another model"
            )


def prompt_text(tokenizer: Any, prompt: Prompt) -> str:
    """The prompt through the chat template, up to where the answer starts: behind the beginning of it, where the prompt's
    last turn is the assistant's.

    Raises:
        UserError: the template refuses the prompt, or is broken.
    """
    if prompt[-1].role == "assistant":
        return chat_text(tokenizer, prompt, continue_final_message=True).rstrip(" ")
    return chat_text(tokenizer, prompt, add_generation_prompt=True)


def space_before(tokenizer: Any, prompt: Prompt, answer: str) -> str:
    """The spaces between a prompt's text, which does not end in one, and an answer."""
    if prompt[-1].role == "assistant":
        return "" if not answer or answer[0].isspace() else _space_behind(prompt[-1].content)
    alone, chat, _ = chats(tokenizer, tokenizer.chat_template)
    if not answer:
        return ""
    if not chat.startswith(alone):  # a thought, for one, that stands in the prompt alone
        return " " if NO_SPACE[1] in tokenizer.chat_template else ""
    space = chat.removeprefix(alone).partition(CHAT[2].content)[0]
    return "" if space.strip(" ") else space


_ENDS_WORD = regex.compile(rf"{LETTER}|[,.:;!?)]|[\p{{Terminal_Punctuation}}--[\u3000-\u303f\uff00-\uffef]]", regex.V1)
"""Letters and what closes a clause; the wide marks of Chinese and Japanese bring their space along."""


def _space_behind(text: str) -> str:
    """The spaces behind the beginning of an answer, whose rest is whole words; it need not end in the space between them."""
    begun = text.rstrip(" ")
    if begun != text:
        return text.removeprefix(begun)
    last = characters(begun[-20:])[-1:]  # with its marks: many words of Hindi end in one
    return " " if last and _ENDS_WORD.match(last[0]) and not regex.match(UNSPACED, last[0]) else ""


@lru_cache(maxsize=8)
def chats(tokenizer: Any, template: str | None) -> tuple[str, str, str]:
    """A prompt, it with its answer, and both with a turn behind them (before which no thought stands), through a template;
    nothing where it refuses them or there is none."""
    try:
        prompt, chat = render(tokenizer, CHAT[1:2], True), render(tokenizer, CHAT[1:], False)
        return prompt, chat, render(tokenizer, (*CHAT[1:], CHAT[1]), False)
    except Exception:  # see `_takes`; the prompts themselves are refused then
        return "", "", ""
