"""Reward functions that a command line names: `reward.function=rewards.py:exact`, in our signature or in TRL's.

    def exact(prompt, answer, example): ...             # ours: one answer; `example.columns["answer"]` is its row's column
    def exact(prompts, completions, answer, **kwargs): ...   # `trl.GRPOTrainer`'s `reward_funcs`: lists, and columns by name

Each becomes a term of the reward under its own name, so that `terms.exact=2` weighs it, and a metric of the evaluation.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlrecipes.errors import OwnCodeError, UserError, first_line, own_code
from rlrecipes.recipe import EVALUATED, Example, Prompt, unknown
from rlrecipes.text import shortened

SETTING = "reward.function"
OF_TRL = ("completion_ids", "trainer_state", "log_extra", "log_metric", "environments")
"""What TRL's trainer gives a reward function of itself, and ours does not have."""
GIVEN = ("prompts", "completions")


@dataclass(frozen=True)
class Function:
    """A function of a person's own, called as a reward term is."""

    name: str
    file: Path
    call: Callable[..., Any]
    of_trl: bool
    """Whether it has the signature of TRL's `reward_funcs`."""

    def __call__(self, prompt: Prompt, answer: str, example: Example) -> Any:
        return self._of_trl(prompt, answer, example) if self.of_trl else self.call(prompt, answer, example)

    def __getattr__(self, name: str) -> Any:
        """The state is that of an object that is called as a function."""
        if name in ("state_dict", "load_state_dict"):
            return getattr(self.call, name)
        raise AttributeError(name)

    @property
    def told(self) -> str:
        """How it is called, in a sentence."""
        if not self.of_trl:
            return f"{self.file.name}:{self.name} is called with (prompt, answer, example)."
        columns = f" and the columns {', '.join(self.columns)}" if self.columns else ""
        return f"{self.file.name}:{self.name} is called as TRL calls its own: prompts, completions{columns}, for one answer."

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.file.read_bytes()).hexdigest()

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that it cannot be called without."""
        if not self.of_trl:
            return ()
        parameters = inspect.signature(self.call).parameters.values()
        return tuple(p.name for p in parameters if _is_named(p) and p.default is p.empty and p.name not in GIVEN)

    def _of_trl(self, prompt: Prompt, answer: str, example: Example) -> float:
        """One answer as lists of one, in the form that the data have: texts, or lists of messages.

        None, by which TRL's functions say that they do not apply to a row, adds nothing there, and nothing here.
        """
        columns = known_columns(example)
        chat = len(prompt) > 1 or isinstance(example.columns.get("prompt"), list)
        turns = [{"role": turn.role, "content": turn.content} for turn in prompt]
        given = {
            "prompts": [turns if chat else prompt[0].content],
            "completions": [[{"role": "assistant", "content": answer}] if chat else answer],
        }
        columns = dict.fromkeys(self.columns) | columns  # a row may lack what others have; TRL gives None for it
        names = inspect.signature(self.call).parameters
        if not any(p.kind is p.VAR_KEYWORD for p in names.values()):
            columns = {name: value for name, value in columns.items() if name in names}
        scores = self.call(**given, **{name: [value] for name, value in columns.items()})
        # TRL goes through whatever it is given, such as an array or a tensor `[1]`
        listed = list(scores) if isinstance(scores, Iterable) and getattr(scores, "ndim", None) != 0 else []
        if isinstance(scores, str | Mapping) or len(listed) != 1:
            raise ValueError(
                f"gave {shortened(repr(scores), 30)} for one answer, and TRL's functions give a list with its score"
            )
        return 0.0 if listed[0] is None else listed[0]


def known_columns(example: Example) -> dict[str, Any]:
    """What a function of TRL's signature is given of a row, by name."""
    columns = {**example.truth, **example.columns}
    return {name: value for name, value in columns.items() if name not in (*GIVEN, "prompt", "completion", *OF_TRL)}


def named_functions(names: str) -> tuple[Function, ...]:
    """The functions that `reward.function` names, in its order.

    Raises:
        UserError: one cannot be found or imported, has neither signature, or is named twice.
    """
    found = []
    for part in _parts(names):
        file, name, call = find_function(SETTING, part)
        found.append(Function(name, file, call, _is_of_trl(part, call)))
    for function in found:
        if [other.name for other in found].count(function.name) > 1:
            raise UserError(f"{SETTING} names two functions called '{function.name}'; give one another name")
        if function.name in EVALUATED:
            raise UserError(
                f"{SETTING}: evaluation has a number called '{function.name}'; give the function another name"
            )
    return tuple(found)


def function_names(names: str) -> list[str]:
    """What the functions are called that `reward.function` names, without looking into their files."""
    return [part.rpartition(":")[2] for part in _parts(names)]


def _parts(names: str) -> list[str]:
    """What lies between the commas, but for those in a file's name, which no `.py` and no function stands before."""
    parts = [""]
    for piece in names.split(","):
        last = parts[-1].strip()
        if last in ("", "none") or last.endswith(".py") or re.search(r":\s*\w+$", last):
            parts.append(piece)
        else:
            parts[-1] += f",{piece}"
    return [part.strip() for part in parts if part.strip() not in ("", "none")]


def functions_joined(overrides: Sequence[str]) -> list[str]:
    """Overrides of which several name a function, with one that names them all."""
    key = f"{SETTING}="
    named = list(dict.fromkeys(override.removeprefix(key) for override in overrides if override.startswith(key)))
    others = [override for override in overrides if not override.startswith(key)]
    return [*others, f"{key}{','.join(named)}"] if named else others


def check_columns(functions: Sequence[Function], examples: Sequence[Example]) -> None:
    """Refuses a function that asks for a column which no row of the data has.

    Raises:
        UserError: with the nearest column that there is.
    """
    known: Mapping[str, None] = dict.fromkeys(name for example in examples for name in known_columns(example))
    for function in functions:
        for name in function.columns:
            if name not in known:
                there = f"the data have {shortened(', '.join(known), 100) or 'no columns of their own'}"
                raise UserError(
                    f"{SETTING}: {function.name} asks for '{name}'; {unknown('column', name, [*known], there)}"
                )


def find_function(setting: str, named: str) -> tuple[Path, str, Callable[..., Any]]:
    """The file, the name and the function that a setting such as `evaluate.judge=judges.py:polite` names.

    Raises:
        UserError: it names none, the file is not there or cannot be imported, or has no such function.
    """
    place, colon, name = named.rpartition(":")
    if not (place and colon and name):
        raise UserError(f"{setting}={named} names no function of a file; write it as file.py:name")
    file = Path(os.path.expanduser(place))
    if not file.is_file():
        raise UserError(f"{setting}={named}: there is no file {file}; give a Python file and one of its functions")
    state = file.stat()
    try:
        there = vars(_module(file.resolve(), state.st_mtime_ns, state.st_size))
    except UserError as error:
        raise UserError(f"{setting}={named}: {error}") from error
    if not callable(call := there.get(name)):
        known = [key for key, value in there.items() if callable(value) and not key.startswith("_")]
        missing = unknown("function", name, known, f"{file} has none of this name")
        raise UserError(f"{setting}={named}: {missing}")
    return file, name, call


@functools.cache
def _module(file: Path, *version: int) -> Any:
    """The file as a module, which all of its functions share; others beside it can be imported from it. `version` tells a
    changed file from one that was read.

    Raises:
        UserError: it cannot be imported.
    """
    name = f"own_{file.stem}_{abs(hash((file, version))):x}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise UserError(f"{file} is no Python file; give one whose name ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        with _found_beside(file.parent), own_code():
            spec.loader.exec_module(module)
    except OwnCodeError as error:
        del sys.modules[name]
        reason = f"{type(error.raised).__name__}: {shortened(first_line(error.raised), 100)}"
        raise UserError(f"{file} cannot be imported ({reason}); mend it") from error
    return module


FOLDERS: dict[str, None] = {}
"""Those of the files that were imported."""


@contextmanager
def _found_beside(folder: Path) -> Iterator[None]:
    """Has an import find what lies in `folder`, though the folder of another file has a module of the same name."""
    own = str(folder)
    FOLDERS[own] = None
    others = [place for place in FOLDERS if place != own]
    there = {path.stem for path in folder.iterdir()} - {"rlrecipes"}
    alike = {name for name in there if name in sys.modules and _folder_of(sys.modules[name]) in others}
    hidden = _modules_of(alike)
    for name in hidden:
        del sys.modules[name]
    sys.path.insert(min((sys.path.index(place) for place in others if place in sys.path), default=len(sys.path)), own)
    try:
        yield
    finally:
        sys.path.remove(own)
        if own not in sys.path:
            sys.path.append(own)
        for name in _modules_of(alike):
            del sys.modules[name]
        sys.modules.update(hidden)


def _modules_of(tops: Collection[str]) -> dict[str, Any]:
    """The modules that are imported, of these names and of packages of these names."""
    return {name: module for name, module in sys.modules.items() if name.partition(".")[0] in tops}


def _folder_of(module: Any) -> str:
    """Where a module's file lies, or the folder that is a package."""
    place = next(iter(getattr(module, "__path__", ())), None) or getattr(module, "__file__", None)
    return os.path.dirname(place or "")


def _is_of_trl(named: str, call: Callable[..., Any]) -> bool:
    """Which signature a function has.

    Raises:
        UserError: neither.
    """
    try:
        parameters = list(inspect.signature(call).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    names = [p.name for p in parameters if _is_named(p)]
    if isinstance(call, type):
        raise UserError(f"{SETTING}={named} is a class; name an object of it, or a function")
    called = (call, inspect.unwrap(call), getattr(call, "func", None), inspect.getattr_static(call, "__call__", None))
    if any(inspect.iscoroutinefunction(each) for each in called):
        raise UserError(f"{SETTING}={named} is asynchronous; give a plain function, which may call asyncio.run")
    if set(GIVEN) <= set(names) or ("completions" in names and any(p.kind is p.VAR_KEYWORD for p in parameters)):
        if trainers := [p.name for p in parameters if p.name in OF_TRL and p.default is p.empty]:
            raise UserError(
                f"{SETTING}={named} asks for {trainers[0]}, which TRL's own trainer alone has; give it a default"
            )
        return True
    needed = [p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    taken = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    many = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    if len(needed) > 3 or (len(taken) < 3 and not many) or any(p.kind is p.KEYWORD_ONLY for p in needed):
        raise UserError(
            f"{SETTING}={named} takes ({', '.join(names)}); let it take (prompt, answer, example), or (prompts, completions, "
            "**columns) as TRL's do"
        )
    return False


def _is_named(parameter: inspect.Parameter) -> bool:
    return parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
