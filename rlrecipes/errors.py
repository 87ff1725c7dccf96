"""The one exception meant for people, what a person's own code raises, and the commands and options that sentences advise.

    UserError("runs/tiny/translation/sft was made with …; name another run (RUN=…) or say FORCE=1 to make it again")

It reads so in the project's own folder, where `make` is at hand. Elsewhere it advises `--run …` and `--force`.
"""

from __future__ import annotations

import contextlib
import os
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

MAKEFILE = Path(__file__).resolve().parent.parent / "Makefile"


LONGEST = 300
"""Characters of a sentence."""


class UserError(Exception):
    """Something the user can mend, in one sentence: what is wrong, where, and what to do.

    The command line prints it after `error: ` on standard error and exits with status 2. Of a sentence that is too long the
    middle goes: what to do stands at its end.
    """

    def __init__(self, sentence: str) -> None:
        super().__init__(_fitted(" ".join(sentence.split())))


def _fitted(sentence: str) -> str:
    if len(sentence) <= LONGEST:
        return sentence
    advice = len(sentence) - sentence.rfind("; ")
    tail = advice if advice < LONGEST * 4 // 5 else LONGEST // 2
    return f"{sentence[: LONGEST - tail - 1].rstrip()}…{sentence[-tail:]}"


@contextlib.contextmanager
def errors_told(*sentences: Callable[[Exception], str | None]) -> Iterator[None]:
    """Turns an error into the sentence that the first of `sentences` has for it; None: it knows none.

    Raises:
        UserError: for such an error.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if (sentence := next(filter(None, (sentence(error) for sentence in sentences)), None)) is None:
            raise
        raise UserError(sentence) from error


class TooLongError(BaseException):
    """A person's own code took longer than its limit, as the text says. No `Exception`, which that code may swallow."""


class OwnCodeError(Exception):
    """A person's own code failed. Its text says how: "raised KeyError (no 'key')"."""

    def __init__(self, raised: BaseException) -> None:
        self.raised = raised
        kind, reason = type(raised).__name__, first_line(raised)
        told = str(raised) if isinstance(raised, TooLongError) else f"raised {kind}"
        super().__init__(told if reason in (kind, told) else f"{told} ({reason})")


@contextlib.contextmanager
def own_code() -> Iterator[None]:
    """Inside runs a person's own code, which may raise anything, call `sys.exit` and change the working directory.

    That is put back: a run's paths may be relative. An interrupt goes through, also one that the code raises itself.

    Raises:
        OwnCodeError: in place of anything else that is raised.
    """
    folder = None
    with contextlib.suppress(OSError):  # somebody removed it
        folder = os.getcwd()
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise OwnCodeError(error) from error
    finally:
        if folder is not None:
            os.chdir(folder)


LIBRARIES = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})
OURS = str(Path(__file__).resolve().parent)


def place_of(error: BaseException) -> str:
    """The file and line of a person's own code that an error came from, or where none is in sight those that raised it.

    >>> place_of(error)
    'recipe.py, line 12'
    """
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith((*LIBRARIES, OURS, "<frozen"))]
    last = (own or frames)[-1]
    return f"{Path(last.filename).name}, line {last.lineno}"


def check_text(name: str) -> None:
    """Refuses a name whose bytes are no text: no record could hold it.

    Raises:
        UserError: with the name, its strange bytes as numbers.
    """
    if not name.isascii() and (readable := name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")) != name:
        raise UserError(f"{readable}: a name that is no UTF-8 text; rename it")


def first_line(error: BaseException) -> str:
    """The first line of a library's error, to quote in a sentence; the error's class where it has no text."""
    message = f"no {error}" if isinstance(error, KeyError) else str(error)  # a KeyError's text is the key alone
    return (message.strip().splitlines() or [type(error).__name__])[0].rstrip(".: ")


def cannot(what: str, error: Exception, advice: str) -> UserError:
    """The refusal of a model that a library cannot open, with the library's reason; ours where it needs a stranger's code."""
    if "trust_remote_code" in str(error):
        return UserError(
            f"{what}: it would run code of its own (auto_map in its files), which is never run here; "
            "choose a model that Transformers itself knows"
        )
    return UserError(f"{what}: {first_line(error)}; {advice}")


def program() -> str:
    """How to call the command line: `rlrecipes` if this process was called so, else as a module, which always works."""
    return "rlrecipes" if Path(sys.argv[0]).stem == "rlrecipes" else "python -m rlrecipes"


def has_make() -> bool:
    """Whether `make` has our targets here: the working directory is a checkout of the project."""
    return MAKEFILE.is_file() and Path(MAKEFILE.name).resolve() == MAKEFILE


def command(name: str) -> str:
    """A command as a person gives it: `make runs`, or `python -m rlrecipes runs` where no `make` is at hand."""
    return f"make {name}" if has_make() else f"{program()} {name}"


def option(name: str, value: str = "…") -> str:
    """An option as a person gives it: `RUN=…` to make, `--run …` to the command line."""
    return f"{name.upper()}={value}" if has_make() else f"--{name} {value}"


def setting(name: str, value: str) -> str:
    """A setting of the table `run` as a person gives it, for which make has a variable: `START=base`, `run.start=base`."""
    return f"{name.upper()}={value}" if has_make() else f"run.{name}={value}"


def switch(name: str) -> str:
    """An option without a value: `FORCE=1` to make, `--force` to the command line."""
    return f"{name.upper()}=1" if has_make() else f"--{name}"
