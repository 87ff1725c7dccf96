"""The one exception that a person is shown, what it quotes of others, and the commands and options that it advises.

    UserError("runs/tiny/translation/sft was made with …; name another run (RUN=…) or say FORCE=1 to make it again")

That is how it reads in the project's own folder, where `make` is at hand. Elsewhere it advises `--run …` and `--force`.
"""

from __future__ import annotations

import sys
from pathlib import Path

MAKEFILE = Path(__file__).resolve().parent.parent / "Makefile"


class UserError(Exception):
    """Something the user can mend, in one sentence: what is wrong, where, and what to do.

    The command line prints it after `error: ` on standard error and exits with status 2.
    """


def first_line(error: Exception) -> str:
    """What an error of a library says, for a sentence: its first line, or its name where it says nothing."""
    said = f"no {error}" if isinstance(error, KeyError) else str(error)  # of which the key is all it says
    return (said.strip().splitlines() or [type(error).__name__])[0].rstrip(".: ")


def program() -> str:
    """What the command line is called by: its own name where a person did so, else its module's, which always works."""
    return "rlrecipes" if Path(sys.argv[0]).stem == "rlrecipes" else "python -m rlrecipes"


def has_make() -> bool:
    """Whether `make` gives our targets here: the working directory is a checkout of the project."""
    return MAKEFILE.is_file() and Path(MAKEFILE.name).resolve() == MAKEFILE


def option(name: str, value: str = "…") -> str:
    """An option as a person gives it: `RUN=…` to make, `--run …` to the command line."""
    return f"{name.upper()}={value}" if has_make() else f"--{name} {value}"


def switch(name: str) -> str:
    """An option without a value: `FORCE=1` to make, `--force` to the command line."""
    return f"{name.upper()}=1" if has_make() else f"--{name}"
