"""A checkpoint's tokenizer without Transformers, whose import alone takes seconds: for what only looks, as `show` does.

runs/.base/b2857da2…/: tokenizer.json, tokenizer_config.json {"eos_token": "<|end|>", …}, chat_template.jinja
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlrecipes.errors import UserError, first_line
from rlrecipes.hub.reach import fetched_file, read_object
from rlrecipes.model.tokens import prepare

SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class LightTokenizer:
    """As much of Transformers' tokenizer as `encoding` and `ending` ask for, under the same names."""

    def __init__(self, rules: Any, special: Mapping[str, str], others: list[str], chat_template: str | None) -> None:
        self.rules = rules
        self.special_tokens_map = dict(special)
        self.others = others
        """Special tokens that have no part of their own."""
        self.chat_template = chat_template

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": self.rules.encode(text, add_special_tokens=add_special_tokens).ids}

    def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
        text: str = self.rules.decode(ids, skip_special_tokens=skip_special_tokens)
        return text

    def convert_ids_to_tokens(self, token: int) -> str:
        return str(self.rules.id_to_token(token))

    def add_special_tokens(self, tokens: Mapping[str, str]) -> None:
        self.rules.add_special_tokens(list(tokens.values()))
        self.special_tokens_map |= tokens

    @property
    def added_tokens_decoder(self) -> dict[int, str]:
        return {number: token.content for number, token in self.rules.get_added_tokens_decoder().items()}

    @property
    def all_special_ids(self) -> list[int]:
        tokens = dict.fromkeys([*self.special_tokens_map.values(), *self.others])
        return [number for token in tokens if (number := self.rules.token_to_id(token)) is not None]

    def __getattr__(self, name: str) -> Any:
        """`eos_token`, `eos_token_id` and the like; None where there is none."""
        token = self.special_tokens_map.get(name.removesuffix("_id")) if name.removesuffix("_id") in SPECIAL else None
        if name.removesuffix("_id") not in SPECIAL:
            raise AttributeError(name)
        return self.rules.token_to_id(token) if token and name.endswith("_id") else token

    def __setattr__(self, name: str, value: Any) -> None:
        if name in SPECIAL:
            self.special_tokens_map[name] = value
        else:
            super().__setattr__(name, value)


def open_light_tokenizer(name: str) -> LightTokenizer:
    """The tokenizer of a folder or a hub id, made ready as for training.

    Raises:
        UserError: it has no `tokenizer.json`, or one of its files cannot be read.
    """
    path = fetched_file(name, "tokenizer.json")
    if path is None:
        raise UserError(f"'{name}' has no tokenizer.json that can be read without Transformers")
    try:
        tokenizer = _opened(name, path)
        prepare(tokenizer, name)
    except UserError:
        raise
    except Exception as error:  # the library raises bare ones, a template any
        raise UserError(
            f"cannot read the tokenizer of '{name}': {first_line(error)}; mend its files, or choose another model"
        ) from None
    return tokenizer


def _opened(name: str, path: Path) -> LightTokenizer:
    from tokenizers import Tokenizer

    rules = Tokenizer.from_file(str(path))
    rules.no_truncation()
    rules.no_padding()
    config, older = _object(name, "tokenizer_config.json"), _object(name, "special_tokens_map.json")
    special = {key: token for key in SPECIAL if (token := _content(config.get(key) or older.get(key)))}
    more = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    others = [token for token in map(_content, more if isinstance(more, list) else more.values()) if token]
    return LightTokenizer(rules, special, others, _template(name, config))


def _object(name: str, file: str) -> dict[str, Any]:
    path = fetched_file(name, file)
    return read_object(path) if path else {}


def _content(token: Any) -> str | None:
    """A token as it stands in the files: a text, or an object that holds it."""
    text = token.get("content") if isinstance(token, dict) else token
    if text is not None and not isinstance(text, str):
        raise TypeError(f"{text!r} stands where a special token's text belongs")
    return text


def _template(name: str, config: Mapping[str, Any]) -> Any:
    if path := fetched_file(name, "chat_template.jinja"):
        return Path(path).read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):  # several, by name
        return {entry["name"]: entry["template"] for entry in template}
    return template
