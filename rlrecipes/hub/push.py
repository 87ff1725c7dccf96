"""The Hugging Face hub, as far as an export goes there. What would fail is found out before the work, and in one sentence."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import Any

from rlrecipes.errors import UserError, option

SECONDS = 1.5
"""The longest wait for a sign of the hub."""


def check_push(name: str) -> None:
    """Refuses an upload that could not succeed, within two seconds.

    Raises:
        UserError: `name` is no `org/name`, nobody is logged in, the hub cannot be reached, or it does not take the login.
    """
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name, re.ASCII) or len(name) > 96:
        raise UserError(
            f"'{name}' cannot name a repository; write it as org/name, such as {option('push', 'my-name/my-policy')}"
        )
    import huggingface_hub

    if huggingface_hub.get_token() is None:
        raise UserError(
            "nobody is logged in to the Hugging Face hub; run `.venv/bin/hf auth login`, or set HF_TOKEN, "
            "then export again"
        )
    if reason := _unreachable():
        raise UserError(
            f"the Hugging Face hub cannot be reached ({reason}); export without PUSH now, and push from a network later"
        )
    try:
        known = huggingface_hub.HfApi().whoami()
    except Exception as error:
        raise UserError(
            f"the Hugging Face hub does not take your login ({_reason(error)}); run `.venv/bin/hf auth login` again"
        ) from None
    owners = [known["name"], *(org["name"] for org in known.get("orgs", ()))]
    if name.partition("/")[0] not in owners:
        raise UserError(f"you are no member of '{name.partition('/')[0]}' on the hub; there are {', '.join(owners)}")


def push(folder: Path, name: str) -> str:
    """Uploads an export in one commit and returns its address. A repository that is not there yet is made, private.

    The adapter goes to the top, where `PeftModel.from_pretrained(base, "org/name")` looks for it.

    Raises:
        UserError: the hub refuses; the export stays.
    """
    import huggingface_hub

    files = sorted(path for path in folder.rglob("*") if path.is_file())
    try:
        api = huggingface_hub.HfApi()
        address = api.create_repo(name, private=True, exist_ok=True)
        operations = [
            huggingface_hub.CommitOperationAdd(path_in_repo=_place(path.relative_to(folder)), path_or_fileobj=path)
            for path in files
        ]
        api.create_commit(name, operations, commit_message="Export from rlrecipes")
    except Exception as error:
        raise UserError(
            f"the upload to {name} failed ({_reason(error)}); the export is in {folder}, push it again with the same command"
        ) from None
    return str(address)


def _place(path: Path) -> str:
    return path.relative_to("adapter").as_posix() if path.parts[0] == "adapter" else path.as_posix()


def _unreachable() -> str | None:
    """Why the hub cannot be reached; None if it can. In a thread, since looking a name up cannot be cut short."""
    answer: list[str | None] = []

    def ask() -> None:
        from huggingface_hub import constants, get_session

        try:
            get_session().head(constants.ENDPOINT, timeout=SECONDS)
            answer.append(None)
        except Exception as error:
            answer.append(_reason(error))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(SECONDS)
    return answer[0] if answer else f"no answer within {SECONDS:g} s"


def _reason(error: Any) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0].rstrip(". :") if lines else "") or type(error).__name__
