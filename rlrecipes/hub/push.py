"""The upload of an export to the Hugging Face hub, and the check, before the work, that it can succeed."""

from __future__ import annotations

import re
from pathlib import Path

from rlrecipes.errors import UserError, first_line, option
from rlrecipes.hub.reach import within
from rlrecipes.run.checksums import MANIFEST

SECONDS = 1.5
"""The longest wait for the hub's answer; with the start of Python the check stays below two seconds."""


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
        account = huggingface_hub.HfApi().whoami()
    except Exception as error:
        raise UserError(
            f"the Hugging Face hub does not take your login ({first_line(error)}); run `.venv/bin/hf auth login` again"
        ) from None
    owners = [account["name"], *(org["name"] for org in account.get("orgs", ()))]
    if name.partition("/")[0] not in owners:
        raise UserError(f"you are no member of '{name.partition('/')[0]}' on the hub; there are {', '.join(owners)}")


def push(folder: Path, name: str) -> str:
    """Uploads an export in one commit, into a new private repository if there is none; returns the repository's address.

    The adapter goes to the top, where `PeftModel.from_pretrained(base, "org/name")` looks for it.

    Raises:
        UserError: the upload fails; the export stays.
    """
    import huggingface_hub

    # The export's own list is about its folder here.
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)
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
            f"the upload to {name} failed ({first_line(error)}); the export is in {folder}, "
            "push it again with the same command"
        ) from None
    return str(address)


def _place(path: Path) -> str:
    return path.relative_to("adapter").as_posix() if path.parts[0] == "adapter" else path.as_posix()


def _unreachable() -> str | None:
    """Why the hub cannot be reached; None if it can."""
    from huggingface_hub import constants, get_session

    try:
        within(SECONDS, lambda: get_session().head(constants.ENDPOINT, timeout=SECONDS))
    except TimeoutError:
        return f"no answer within {SECONDS:g} s"
    except Exception as error:
        return first_line(error)
    return None
