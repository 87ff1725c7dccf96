"""A pad token that texts are made of becomes plain text again, so that no token of a text is ever taken for padding.

pad_token "a": "a cat" -> " ", "c", "t", all that stays of it where "a" is a special token; "a", " ", "c", "a", "t" without
"""

from __future__ import annotations

import json
import re
from typing import Any

WRITTEN = re.compile(r"[<\[{|](?!0x[0-9A-F]{2}>).*\w.*[>\]}|]")
"""How special tokens are written: `<pad>`, `[PAD]`, `<|pad|>`; `<0x00>` is a byte of text."""


def release_pad(tokenizer: Any) -> None:
    """Takes the pad token away from a tokenizer where a text may become it, and makes it plain text.

    Transformers makes a special token of whatever is named as padding: texts would be cut at it, and answers lose it.
    """
    backend, name, id = getattr(tokenizer, "backend_tokenizer", None), tokenizer.pad_token, tokenizer.pad_token_id
    if backend is None or id is None or WRITTEN.fullmatch(name) or id not in backend.get_vocab(False).values():
        return
    if id in (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id):  # another's, too
        return
    from tokenizers import Tokenizer

    parts = json.loads(backend.to_str())
    parts["added_tokens"] = [token for token in parts["added_tokens"] if token["id"] != id]
    plain = Tokenizer.from_str(json.dumps(parts))
    found = plain.decode([id], skip_special_tokens=False)
    texts = (name, found, f"x{name}", f"x{found}")  # SentencePiece puts a space before a text's first word
    if any(id in plain.encode(text, add_special_tokens=False).ids for text in texts):
        tokenizer.pad_token = None
        tokenizer._tokenizer = plain
