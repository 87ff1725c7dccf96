"""Which options commands take, and how a command line is read; every refusal is one sentence.

["sft", "translation", "--run", "mine", "sft.max_steps=50"]
-> Namespace(command="sft", recipe="translation", run="mine", overrides=["sft.max_steps=50"], …)
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from rlrecipes import __version__
from rlrecipes.data.joint import PLUS
from rlrecipes.errors import UserError, check_text, program
from rlrecipes.job import SHARED_STAGES, check_seed
from rlrecipes.profile import profile_names
from rlrecipes.recipe import recipe_names, unknown
from rlrecipes.run.stages import models

REWARD = "reward"
"""What `export` takes beside the policies."""
OF_SEVERAL = (*SHARED_STAGES, "examine")
"""The commands that take several recipes."""

OPTIONS: dict[str, dict[str, Any]] = {
    "profile": {"help": "how big to run (default: the run's own, or tiny)"},
    "model": {"help": "hub id or local checkpoint folder (default: the profile's)"},
    "data": {"help": "a data file or folder, hub, hub:<id>, or built-in (default: the profile's)"},
    "columns": {
        "nargs": "+",
        "default": [],
        "metavar": "name=column",
        "help": "which columns of --data to read as what",
    },
    "settings": {"metavar": "file", "help": "begin as a run did: its settings.toml"},
    "from": {"metavar": "run", "help": "take SFT and the reward model from this run, as they are"},
    "recipe": {"help": "compare this one alone (default: all that two of the runs have)"},
    "seeds": {
        "nargs": "+",
        "metavar": "seed",
        "help": "a run for each, <run>-seed<seed>, and then their mean and spread",
    },
    "card": {"help": "GiB of a GPU, or its name, such as rtx4090 (default: the profile's)"},
    "seed": {"type": int, "help": "of everything random (default: the run's own, or 0)"},
    "run": {"help": "name of the run's folder under runs/ (default: the profile's name)"},
    "force": {"action": "store_true", "help": "make the stages again, with all that stands on them"},
    "policy": {"help": f"{', '.join(models())} (default: the last that is trained); to export also {REWARD}"},
    "temperature": {"type": float, "help": "of sampling (default: 0, greedy)"},
    "json": {"action": "store_true", "help": "prompts and answers are lines of JSON"},
    "merged": {"action": "store_true", "help": "also whole weights, merged in full precision"},
    "to": {"metavar": "folder", "help": "where the export or the examination goes (default: the run's folder)"},
    "push": {"metavar": "org/name", "help": "upload to this repository of the Hugging Face hub"},
}
"""The keywords of `add_argument` for each option."""


@dataclass(frozen=True)
class Command:
    """What one command does and takes."""

    help: str
    act: Callable[[argparse.Namespace], None]
    options: tuple[str, ...] = ()
    recipe: bool = True
    """Whether it takes the name of a recipe."""
    settings: bool = True
    """Whether it takes overrides of the profile, `table.key=value`."""
    runs: bool = False
    """Whether it takes names of runs."""
    several: bool = False
    """Whether several processes do it together; else the first of those that a launcher started does it by itself."""

    @property
    def takes(self) -> str:
        """The options and overrides it takes, for a sentence."""
        return ", ".join([f"--{name}" for name in self.options] + ["table.key=value"] * self.settings) or "nothing"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see `{self.prog} --help`")


def parse(argv: list[str], commands: Mapping[str, Command]) -> argparse.Namespace:
    """A command line's values: those of all `OPTIONS`, and `command`, `recipe`, `overrides` and `runs`.

    `like` is a second run whose settings count where the first has none: nothing but `--seeds` sets it.

    Raises:
        UserError: for an unknown or missing word, or a value that is empty or out of bounds.
    """
    for word in argv:
        check_text(word)
    if not argv or argv[0].startswith("-"):
        _front(commands).parse_known_args(argv)  # which answers --help and --version
        raise UserError(f"name a command first: {', '.join(commands)}; see `{program()} --help`")
    name, *rest = argv
    if name not in commands:
        raise UserError(unknown("command", name, list(commands), f"there are {', '.join(commands)}"))
    command = commands[name]
    defaults = {key: keywords.get("default") for key, keywords in OPTIONS.items()}
    arguments, others = _parser(name, command).parse_known_intermixed_args(  # settings may stand between options
        rest, argparse.Namespace(command=name, **defaults)
    )
    arguments = argparse.Namespace(**{"recipe": None, "overrides": [], "runs": [], "like": None, **vars(arguments)})
    for other in sorted(others, key=lambda other: not other.startswith("-")):
        other = other.partition("=")[0] if other.startswith("-") else other
        raise UserError(f"`{name}` does not take {other}; leave {other} out (it takes {command.takes})")
    _check(command, arguments)
    return arguments


def _front(commands: Mapping[str, Command]) -> _Parser:
    rows = "\n".join(f"  {name:<9} {command.help}" for name, command in commands.items())
    parser = _Parser(
        prog=program(),
        usage="%(prog)s <command> …",
        description="Fine-tune a language model with a reward: recipes from data to an evaluated PPO policy.",
        epilog=f"commands:\n{rows}\n\nrecipes: {', '.join(recipe_names())}\nprofiles: {', '.join(profile_names())}\n\n"
        f"`{program()} <command> --help` says what a command takes.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"rlrecipes {__version__}")
    return parser


def _parser(name: str, command: Command) -> _Parser:
    words = (
        ["<recipe>"] * command.recipe
        + ["[table.key=value …]"] * command.settings
        + ["<run> <run> …"] * command.runs
        + ["[options]"] * bool(command.options)
    )
    parser = _Parser(
        prog=f"{program()} {name}",
        usage=" ".join(["%(prog)s", *words]),
        description=f"{name}: {command.help}.",
        allow_abbrev=False,
    )
    if command.recipe:
        several = f"; or several, joined by {PLUS}" if name in OF_SEVERAL else ""
        parser.add_argument("recipe", nargs="?", help=f"one of {', '.join(recipe_names())}{several}")
    if command.settings:
        parser.add_argument("overrides", nargs="*", metavar="table.key=value", help="overrides, as sft.max_steps=50")
    if command.runs:
        parser.add_argument(
            "runs", nargs="*", metavar="run", help="folders under runs/; the others are set against the first"
        )
    for key in command.options:
        parser.add_argument(f"--{key}", **OPTIONS[key])
    return parser


def _check(command: Command, arguments: argparse.Namespace) -> None:
    """Refuses a missing recipe, several for a command that takes one, and values that are empty or out of bounds."""
    name, recipe = arguments.command, arguments.recipe
    for key in command.options:
        if getattr(arguments, key) == "":
            raise UserError(f"--{key} is empty; give it a value or leave it out")
    check_seed(arguments.seed or 0)
    if command.recipe and (not recipe or "=" in recipe):
        raise UserError(f"`{name}` needs a recipe: {', '.join(recipe_names())}")
    if recipe and PLUS in recipe and name not in OF_SEVERAL:
        raise UserError(
            f"`{name}` is for one recipe; several share `reward` alone, as `reward {recipe}`, "
            "and each then uses it by reward.model=…"
        )
