"""Whether the hub can give a model or a data set: an answer within two seconds, before any heavy library loads.

    reach_data("stanfordnlp/imdb", None) -> ("stanfordnlp/imdb", "e6281661ce1c48d982bc483cf8a173c1bbeb5d31")

Without a network the hub's cache serves; where it has nothing, one sentence says what to do.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from rlrecipes.errors import UserError, first_line, has_make, option, program, switch
from rlrecipes.run.console import say
from rlrecipes.text import quoted, shortened

SECONDS = 1.2
"""How long the hub may take to answer; with the start of Python and the imports that stays below two seconds."""
ADAPTER, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
Kind = Literal["dataset", "model"]


class _NoAnswerError(Exception):
    """The hub did not answer; the text says how."""


def is_local(name: str) -> bool:
    """Whether a model's name is a folder rather than a hub id."""
    return name.startswith((".", "/", "~")) or os.path.isdir(name)  # unlike Path, it takes a name of any length


def is_hub_id(name: str) -> bool:
    """Whether a name could be a hub id: `owner/name`, or a bare `name`."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def reach_model(name: str, setting: str | None = "model") -> None:
    """Makes sure that a folder, the hub or the hub's cache has a model or an adapter.

    If the hub does not answer and the cache has the model, this process asks the hub nothing more. `setting` is the setting
    with which the user could name another model, for the error's sentence; None: there is no such setting.

    Raises:
        UserError: none of them has it, or the user must ask for access; as a base it is an adapter.
    """
    choice = option("model") if setting == "model" else f"{setting}=…"
    if is_local(name):
        if setting == "model":
            check_no_adapter(name, cached_file)
        if not cached_file(name, "config.json"):
            merged, adapter = (os.path.join(name, folder) for folder in ("merged", "adapter"))  # as `export` has them
            other = f"give a checkpoint folder or a hub id as {choice}" if setting else "put it back there"
            if cached_file(merged, "config.json"):
                other = f"give {merged}, which holds one"
            elif setting == "model":
                check_no_adapter(adapter, cached_file)
            raise UserError(f"there is no model in '{shortened(name, 100)}' (no config.json); {other}")
        return
    try:
        _commit("model", name, None)
    except _NoAnswerError as why:
        if not _cached_model(name):
            other = f"give a local checkpoint folder as {choice}, or " if setting else ""
            raise UserError(
                f"cannot read the model '{name}': {why}, and the hub's cache does not hold it; "
                f"{other}fetch it where there is a network (hf download {name}) and copy its folder of {_cache()} here"
            ) from None
        if not _offline():
            say(f"{name}: {why}, so it is read from the hub's cache")
            _go_offline()


def check_no_adapter(name: str, find: Callable[[str, str], Path | None]) -> None:
    """Refuses an adapter where the base should be; `find` gives a model's files.

    Raises:
        UserError: with its base, and how to begin with what it learnt.
    """
    path = find(name, ADAPTER)
    if path is None:
        return
    base = read_object(path).get("base_model_name_or_path")
    merge = f"`{'make' if has_make() else program()} export … {switch('merged')}`, or PEFT's merge_and_unload"
    if any(cached_file(name, file) for file in WEIGHTS):
        raise UserError(
            f"{quoted(name, 100)} holds an adapter beside its weights, which loading would add to them; take {ADAPTER} "
            f"out of it to train those weights, or merge it first ({merge}) and give that folder"
        )
    named = f" ({quoted(base)})" if isinstance(base, str) and base else ""
    raise UserError(
        f"{quoted(name, 100)} is an adapter; give its base{named} as {option('model')}, or, to begin with what it learnt, "
        f"merge it first ({merge}) and give that folder"
    )


def reach_data(id: str, revision: str | None) -> tuple[str, str | None]:
    """Where to load a data set from, its id or a folder of the hub's cache, and its commit.

    Raises:
        UserError: neither has it, or the user must ask for access.
    """
    try:
        return id, _commit("dataset", id, revision)
    except _NoAnswerError as why:
        if folder := _cached_data(id, revision):
            say(f"{id}: {why}, so it is read from the hub's cache")
            return str(folder), folder.name
        pinned = f" --revision {revision}" if revision else ""
        raise UserError(
            f"cannot fetch the data set '{id}': {why}, and the hub's cache does not hold it; run "
            f"`hf download --repo-type dataset {id}{pinned}` elsewhere and copy its folder of {_cache()} here, "
            f"or give its files as {option('data', '<folder>')}"
        ) from None


def _commit(kind: Kind, id: str, revision: str | None) -> str:
    """The commit that a revision now points to.

    Raises:
        UserError: the hub has no such repository or revision, or wants its terms accepted first.
        _NoAnswerError: the hub cannot be asked, or does not answer in time.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    if not is_hub_id(id):
        raise UserError(f"'{shortened(id, 100)}' is neither a folder nor a hub id; write an id as owner/name")
    if _offline():
        raise _NoAnswerError("HF_HUB_OFFLINE is set")
    subject = f"the {'data set' if kind == 'dataset' else 'model'} '{id}'"
    try:
        info = within(SECONDS, lambda: _repo_info(HfApi(), kind, id, revision))
    except GatedRepoError:
        raise UserError(
            f"{subject} is gated: accept its terms on its page of the hub, then log in once with `hf auth login`"
        ) from None
    except RepositoryNotFoundError:
        raise UserError(
            f"the hub has no {subject.removeprefix('the ')} that you may read; check its name, or log in with `hf auth login`"
        ) from None
    except RevisionNotFoundError:
        raise UserError(f"{subject} has no revision '{revision}'; name a branch, a tag or a commit after @") from None
    except Exception as error:  # of the HTTP library, or of a proxy or firewall
        raise _NoAnswerError(f"the hub cannot be reached ({shortened(first_line(error), 120)})") from error
    return str(info.sha)


def _repo_info(api: Any, kind: Kind, id: str, revision: str | None) -> Any:
    info = api.repo_info(id, repo_type=kind, revision=revision, timeout=SECONDS)
    if info.gated:
        api.auth_check(id, repo_type=kind)
    return info


def within(seconds: float, ask: Callable[[], Any]) -> Any:
    """What `ask` returns. It runs in a thread, since a connection's own time limit does not cover the look-up of its name.

    Raises:
        TimeoutError: `ask` takes longer; its own errors pass through.
    """
    answers: list[Any] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            answers.append(ask())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not answers:
        raise TimeoutError(f"no answer within {seconds:g} seconds")
    return answers[0]


def _offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _go_offline() -> None:
    """Sets both: libraries read the variable during their import, and the constant later."""
    from huggingface_hub import constants

    os.environ["HF_HUB_OFFLINE"] = "1"
    constants.HF_HUB_OFFLINE = True


def _cache() -> str:
    from huggingface_hub import constants

    return str(constants.HF_HUB_CACHE)


def cached_file(name: str, file: str) -> Path | None:
    """A model's file in its folder or in the hub's cache; None where neither has it."""
    if is_local(name):
        path = os.path.join(os.path.expanduser(name), file)
        return Path(path) if os.path.isfile(path) else None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        path_or_mark = try_to_load_from_cache(name, file)  # a mark where the cache knows that the hub lacks it
    except HFValidationError:  # the name is no hub id
        return None
    return Path(path_or_mark) if isinstance(path_or_mark, str) else None


def fetched_file(name: str, file: str) -> Path | None:
    """Like `cached_file`, but fetches a small file that only the hub has; None where the hub does not give it."""
    if (path := cached_file(name, file)) or is_local(name):
        return path
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, file))
    except Exception:  # no such file, no network, no access: the library has several errors for each
        return None


def read_object(path: Path) -> dict[str, Any]:
    """The object in a model's JSON file.

    Raises:
        UserError: the file holds no object, or nests too deeply.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise UserError(f"{path} is no JSON object; mend it, or choose another model")
    return value


def _cached_model(name: str) -> bool:
    if cached_file(name, ADAPTER):
        return bool(cached_file(name, ADAPTER_WEIGHTS))
    return bool(cached_file(name, "config.json")) and any(cached_file(name, file) for file in WEIGHTS)


def _cached_data(id: str, revision: str | None) -> Path | None:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(id, repo_type="dataset", revision=revision, local_files_only=True))
    except Exception:  # the cache does not have it; the library has several errors for that
        return None
