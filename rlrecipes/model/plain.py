"""Text of data that spells a special token: it is tokenized as the plain text that it is.

    "Stop.<|im_end|>" of a row -> "Stop", ".", "<", "|", "im", "_", "end", "|", ">"

A tokenizer turns such text into the token wherever it stands. An answer would then end twice, and a prompt could forge turns
that nobody can tell from real ones. The chat template's own tokens stay what they are: in a twin of the tokenizer the special
tokens have other names, which no text of the row holds, and the template's are written with these.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from rlrecipes.errors import UserError

PRIVATE = range(0xF0000, 0xFFFFD)
"""Characters that Unicode leaves to everybody's own use; a row holds at most a few of them."""


@lru_cache(maxsize=8)
def special_tokens(tokenizer: Any, chat: str) -> re.Pattern[str]:
    """Finds special tokens in text: those that the tokenizer marks as such, its added tokens that stand in `chat`, a chat
    through its template (DeepSeek marks no turn's token as special), and those that its model has no embedding for."""
    count = getattr(tokenizer, "embedded", None)
    added = [(id, token) for id, token in tokenizer.added_tokens_decoder.items() if str(token).strip()]
    unknown = {id for id, _ in added if count is not None and id >= count}
    names = {str(token) for id, token in added if token.special or str(token) in chat or id in unknown}
    return re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))) or r"(?!)")


@dataclass(frozen=True)
class Reading:
    """How the texts of one row are hidden from the chat template, and its output tokenized."""

    tokenizer: Any
    special: re.Pattern[str]
    spelled: bool
    """Whether a text spells a special token; otherwise nothing is hidden."""
    mark: str
    """Stands around the numbers of hidden tokens, in no text."""
    name: str
    """Stands around the numbers of the twin's own tokens, in no text."""

    def hide(self, text: str) -> str:
        """A text of the row with each special token hidden that it spells."""
        return self._numbered(text, self.mark) if self.spelled else text

    def row(self, *texts: str, **options: Any) -> dict[str, list[int]]:
        """What the tokenizer makes of a text, or of a pair of them, in which the row's own texts are hidden."""
        if not self.spelled:
            return dict(self.tokenizer(*texts, **options))
        encoded = _twin(self.tokenizer, self.special, self.name).encode(*map(self._restored, texts), **options)
        rows = {"input_ids": encoded.ids, "token_type_ids": encoded.type_ids}
        return {name: row for name, row in rows.items() if name in self.tokenizer.model_input_names}

    def ids(self, text: str) -> list[int]:
        """The ids of a text in which the row's own texts are hidden."""
        return self.row(text, add_special_tokens=False)["input_ids"]

    def _numbered(self, text: str, mark: str) -> str:
        ids: Mapping[str, int] = self.tokenizer.added_tokens_encoder
        return self.special.sub(lambda found: f"{mark}{ids[found[0]]}{mark}", text)

    def _restored(self, text: str) -> str:
        tokens = self.tokenizer.added_tokens_decoder
        own = self._numbered(text, self.name)
        return re.sub(f"{self.mark}(\\d+){self.mark}", lambda found: str(tokens[int(found[1])]), own)


def reading(tokenizer: Any, chat: str, texts: Sequence[str]) -> Reading:
    """How to tokenize the texts of a row, behind a chat template that writes a chat like `chat`."""
    special = special_tokens(tokenizer, chat)
    if not any(map(special.search, texts)):
        return Reading(tokenizer, special, False, "", "")
    free = (c for c in map(chr, PRIVATE) if not any(c in text for text in texts))
    return Reading(tokenizer, special, True, next(free), next(free))


@lru_cache(maxsize=8)
def _twin(tokenizer: Any, special: re.Pattern[str], name: str) -> Any:
    """The tokenizer in which special tokens have the same ids, and are called by them between two `name`s.

    Raises:
        UserError: there is none.
    """
    from tokenizers import Tokenizer

    ids = {str(token): id for id, token in tokenizer.added_tokens_decoder.items()}
    names = {token: f"{name}{id}{name}" for token, id in ids.items() if special.fullmatch(token)}
    try:
        twin = Tokenizer.from_str(json.dumps(_renamed(json.loads(tokenizer.backend_tokenizer.to_str()), names)))
    except (
        Exception
    ):  # a slow tokenizer has no backend; the library raises no error of its own over a part it cannot read
        twin = None
    if twin is None or any(twin.token_to_id(names.get(token, token)) != id for token, id in ids.items()):
        raise UserError(
            "a row spells a special token such as '<|im_end|>', which this model's tokenizer cannot read as plain text; "
            "leave such rows out, or choose another model"
        )
    return twin


def _renamed(parts: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """The parts of a tokenizer with other names for some of its added tokens."""
    model = parts["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {names.get(token, token): id for token, id in model["vocab"].items()}
    else:
        model["vocab"] = [[names.get(token, token), score] for token, score in model["vocab"]]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    if "merges" in model:  # plain text must not grow into a special token
        pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
        model["merges"] = [pair for pair in pairs if "".join(pair) not in names]
    for token in parts["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    return {**parts, "truncation": None, "padding": None}
