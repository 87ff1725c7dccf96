"""The command line: `rlrecipes <command> <recipe> …`, or `python -m rlrecipes …`; `make` calls it too.

    rlrecipes chat translation --policy sft

Each command is a row of `commands()`: its help, what it does, and the options it takes. Help, listing, showing and every
usage error answer without importing torch.
"""

from __future__ import annotations

import argparse
import io
import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from rlrecipes import __version__
from rlrecipes.after.finished import FinishedRun, find_finished_run
from rlrecipes.before.plan import plan
from rlrecipes.errors import UserError, option, program, switch
from rlrecipes.hub.reach import reach_model
from rlrecipes.job import PLUS, SHARED_STAGES, Job, check_seed, with_weights
from rlrecipes.pipeline import in_order, prepare, run_stages
from rlrecipes.profile import LOWEST_TEMPERATURE, Profile, check_once, load_profile, profile_names
from rlrecipes.recipe import BUILT_IN, Reward, load_recipe, recipe_names, unknown
from rlrecipes.run.allocator import keep_freed_memory
from rlrecipes.run.console import end_bars, open_streams, quiet, say, shown
from rlrecipes.run.disk import disk_errors_told
from rlrecipes.run.folder import Run
from rlrecipes.run.interrupts import Interrupted, handled, stop_requested
from rlrecipes.run.stages import POLICIES, STAGES, models

INTERRUPTED = 75

OPTIONS: dict[str, dict[str, Any]] = {
    "profile": {"default": "tiny", "help": "how big to run (default: tiny)"},
    "model": {"help": "hub id or local checkpoint folder (default: the profile's)"},
    "data": {"help": "a data file or folder, hub, hub:<id>, or built-in (default: the profile's)"},
    "columns": {
        "nargs": "+",
        "default": [],
        "metavar": "name=column",
        "help": "which columns of --data to read as what",
    },
    "card": {"help": "GiB of a GPU, or its name, such as rtx4090 (default: the profile's)"},
    "seed": {"type": int, "default": 0, "help": "of everything random (default: 0)"},
    "run": {"help": "name of the run's folder under runs/ (default: the profile's name)"},
    "force": {"action": "store_true", "help": "make the stages again, with all that stands on them"},
    "policy": {"help": f"{', '.join(models())} (default: the last that is trained)"},
    "temperature": {"type": float, "help": "of sampling (default: 0, greedy)"},
    "json": {"action": "store_true", "help": "prompts and answers are lines of JSON"},
    "merged": {"action": "store_true", "help": "also whole weights, merged in full precision"},
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

    @property
    def takes(self) -> str:
        """The options and overrides it takes, for a sentence."""
        return ", ".join([f"--{name}" for name in self.options] + ["table.key=value"] * self.settings) or "nothing"


def commands() -> dict[str, Command]:
    """All commands, by name."""
    size, place = ("profile", "model"), ("seed", "run", "force")
    data, policy = ("data", "columns"), ("profile", "run", "policy")
    stages = {name: Command(stage.help, _run, (*size, *data, *place)) for name, stage in STAGES.items()}
    return {
        "list": Command("the recipes and profiles there are", _list, recipe=False, settings=False),
        "plan": Command(
            "what each stage needs of a GPU's memory, and the largest batches that fit a card", _plan, (*size, "card")
        ),
        "show": Command(
            "a recipe's data, reward terms and metrics, without training anything", _show, (*size, *data, "run")
        ),
        "run": Command("all stages of a recipe, those that are finished left out", _run, (*size, *data, *place)),
        "demo": Command("all recipes end to end, then one report over them", _demo, (*size, *place), recipe=False),
        **stages,
        "chat": Command(
            "talk to what a run has trained; or one answer for each line of standard input",
            _chat,
            (*policy, "temperature", "seed", "json"),
            settings=False,
        ),
        "export": Command(
            "a run's policy as PEFT and Transformers load it, with a model card",
            _export,
            (*policy, "merged", "push"),
            settings=False,
        ),
    }


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see `{self.prog} --help`")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status: 0, 2 for an error that the user can mend, 75 for an interruption."""
    # Threads that spin while they wait stall each other as soon as another process wants a core (measured: 30 times
    # slower); threads that sleep at once take twice as long on a quiet machine. A short spin costs little of either.
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")
    keep_freed_memory()
    open_streams()
    with handled():
        return _status(list(sys.argv[1:] if argv is None else argv))


def _status(argv: list[str]) -> int:
    again = "give the same command again"
    try:
        arguments = _parse(argv)
        again += f" without {switch('force')}" if arguments.force else ""
        with disk_errors_told(again):
            commands()[arguments.command].act(arguments)
            if sys.stdout is not None:
                sys.stdout.flush()  # here, where a full disk can still be told
    except UserError as error:
        end_bars()
        print(f"error: {shown(' '.join(str(error).split()))}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except BaseException as error:
        # Libraries may turn an interrupt into another error.
        if not (isinstance(error, KeyboardInterrupt) or stop_requested()):
            raise
        end_bars()
        note = f", {error}" if isinstance(error, Interrupted) and error.args else ""
        print(shown(f"\ninterrupted{note}; {again} to go on"), file=sys.stderr)
        return INTERRUPTED
    return 0


def _parse(argv: list[str]) -> argparse.Namespace:
    if not argv or argv[0].startswith("-"):
        _front().parse_known_args(argv)  # which answers --help and --version
        raise UserError(f"name a command first: {', '.join(commands())}; see `{program()} --help`")
    name, *rest = argv
    if name not in commands():
        raise UserError(unknown("command", name, list(commands()), f"there are {', '.join(commands())}"))
    command = commands()[name]
    defaults = {key: keywords.get("default") for key, keywords in OPTIONS.items()}
    arguments, others = _parser(name, command).parse_known_intermixed_args(  # settings may stand between options
        rest, argparse.Namespace(command=name, recipe=None, **defaults)
    )
    for other in sorted(others, key=lambda other: not other.startswith("-")):
        other = other.partition("=")[0] if other.startswith("-") else other
        raise UserError(f"`{name}` does not take {other}; leave {other} out (it takes {command.takes})")
    _check(command, arguments)
    return arguments


def _front() -> _Parser:
    rows = "\n".join(f"  {name:<9} {command.help}" for name, command in commands().items())
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
        + ["[options]"] * bool(command.options)
    )
    parser = _Parser(
        prog=f"{program()} {name}",
        usage=" ".join(["%(prog)s", *words]),
        description=f"{name}: {command.help}.",
        allow_abbrev=False,
    )
    if command.recipe:
        several = f"; or several, joined by {PLUS}" if name in SHARED_STAGES else ""
        parser.add_argument("recipe", nargs="?", help=f"one of {', '.join(recipe_names())}{several}")
    if command.settings:
        parser.add_argument("settings", nargs="*", metavar="table.key=value", help="overrides, as sft.max_steps=50")
    for key in command.options:
        parser.add_argument(f"--{key}", **OPTIONS[key])
    return parser


def _check(command: Command, arguments: argparse.Namespace) -> None:
    """Refuses a missing recipe, several for a command that takes one, and values that are empty or out of bounds."""
    name, recipe = arguments.command, arguments.recipe
    for key in command.options:
        if getattr(arguments, key) == "":
            raise UserError(f"--{key} is empty; give it a value or leave it out")
    check_seed(arguments.seed)
    if command.recipe and (not recipe or "=" in recipe):
        raise UserError(f"`{name}` needs a recipe: {', '.join(recipe_names())}")
    if recipe and PLUS in recipe and name not in SHARED_STAGES:
        raise UserError(
            f"`{name}` is for one recipe; several share `reward` alone, as `reward {recipe}`, "
            "and each then uses it by reward.model=…"
        )


def _list(arguments: argparse.Namespace) -> None:
    for name in recipe_names():
        try:
            say(f"{name:<20} {load_recipe(name).summary}")
        except UserError as error:  # the other recipes still work
            say(f"{name:<20} {error}")
    say(f"\nprofiles: {', '.join(profile_names())}")


def _plan(arguments: argparse.Namespace) -> None:
    """Reads no data: the profile says how long rows may get."""
    profile, weights = _profile(arguments)
    reward = with_weights(load_recipe(arguments.recipe).reward, weights)
    _refuse_unlearned(arguments, reward)
    say(plan(profile, bool(reward.learned), arguments.card))


def _show(arguments: argparse.Namespace) -> None:
    from rlrecipes.before.show import show

    say(show(_job(arguments, arguments.recipe)))


def _run(arguments: argparse.Namespace) -> None:
    job = _job(arguments, arguments.recipe)
    stages = in_order(() if arguments.command == "run" else (arguments.command,), job)
    run_stages(job, stages, arguments.force)
    if stages[-1] == "report":
        from rlrecipes.report.page import short_table

        say(f"\n{short_table([job.run])}\nreport: {job.run.stage('report') / 'index.html'}")


def _recipes_to_demonstrate() -> list[str]:
    """The recipes with built-in data; the console says which have none or cannot be used.

    Raises:
        UserError: no recipe has any.
    """
    names = []
    for name in recipe_names():
        try:
            if load_recipe(name).builtin is None:
                raise UserError(f"{name} has no built-in data")
            names.append(name)
        except UserError as error:
            say(f"left out: {error}")
    if not names:
        raise UserError("no recipe has built-in data to demonstrate; run one on your own, as `run <recipe> --data …`")
    return names


def _demo(arguments: argparse.Namespace) -> None:
    if any("=" not in setting for setting in arguments.settings):
        raise UserError("`demo` runs all recipes on their built-in data; name no recipe and no data")
    arguments.data = BUILT_IN
    jobs = [_job(arguments, name) for name in _recipes_to_demonstrate()]
    from rlrecipes.report.page import combine, short_table

    for job in jobs:
        run_stages(job, tuple(STAGES), arguments.force)
    runs = [job.run for job in jobs]
    page = combine(runs)
    say(f"\n{short_table(runs)}\nreport: {page}")


def _job(arguments: argparse.Namespace, recipe: str) -> Job:
    profile, weights = _profile(arguments)
    if PLUS not in recipe:
        _refuse_unlearned(arguments, with_weights(load_recipe(recipe).reward, weights))
    # make hands all of them on as one text; names of columns may hold spaces
    texts = [part for text in arguments.columns for part in re.split(r"\s+(?=[\w.]+=)", text.strip())]
    columns = dict(pairs := [_column(text) for text in texts])
    if len(columns) < len(pairs):
        raise UserError("--columns names one column for two; name each once")
    return prepare(
        recipe,
        profile,
        weights=weights,
        data=arguments.data,
        columns=columns,
        seed=arguments.seed,
        run=arguments.run,
    )


def _profile(arguments: argparse.Namespace) -> tuple[Profile, list[str]]:
    """The profile with the command line's overrides, and the overrides of reward weights, which belong to the recipe."""
    check_once(arguments.settings)
    weights = [s for s in arguments.settings if s.startswith("terms.")]
    return load_profile(
        arguments.profile, [s for s in arguments.settings if s not in weights], arguments.model
    ), weights


def _refuse_unlearned(arguments: argparse.Namespace, reward: Reward) -> None:
    """Refuses settings of a reward model that the run does not use; without `terms.learned=0`, only `reward.model` itself."""
    if not reward.learned:
        idle = "reward." if any(s.startswith("terms.learned=") for s in arguments.settings) else "reward.model="
        for setting in arguments.settings:
            if setting.startswith(idle):
                raise UserError(f"{setting} has no effect while terms.learned is 0; give that a weight or leave it out")


def _column(text: str) -> tuple[str, str]:
    name, equals, column = text.partition("=")
    if not (name and equals and column):
        raise UserError(f"cannot read the column '{text}'; write name=column, such as target=post_edit")
    return name, column


def _run_and_policy(arguments: argparse.Namespace) -> tuple[FinishedRun, str]:
    """The finished run and the policy that the command line names."""
    name = arguments.run or load_profile(arguments.profile).name
    finished = find_finished_run(Run(name, arguments.recipe), load_recipe(arguments.recipe))
    policy = finished.policy(arguments.policy)
    base = finished.base_model()  # here, so that the error comes before the libraries load
    if not finished.embedded:
        reach_model(base, None)
    return finished, policy


def _chat(arguments: argparse.Namespace) -> None:
    finished, policy = _run_and_policy(arguments)
    if sys.stdin is None:
        raise UserError("`chat` has no standard input; talk to it in a terminal, or send it a prompt a line")
    temperature, talking = arguments.temperature or 0.0, sys.stdin.isatty()
    if not math.isfinite(temperature) or temperature < 0 or 0 < temperature < LOWEST_TEMPERATURE:
        raise UserError(
            f"--temperature is {temperature}; it must be 0, which is greedy, or a finite number from {LOWEST_TEMPERATURE} on"
        )
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # an error then names the line whose bytes are no text
    if arguments.json and talking:
        raise UserError("--json is for prompts on standard input; send them in, as `chat … --json < prompts.jsonl`")
    if talking:
        print(f"loading {finished.run.folder} …", file=sys.stderr)
    quiet()
    from transformers import set_seed

    from rlrecipes.after.chat import answer_lines, load_voice, talk

    voice = load_voice(finished, temperature)
    set_seed(arguments.seed)
    if talking:
        talk(voice, policy)
    else:
        answer_lines(voice, policy, sys.stdin, arguments.json)


def _export(arguments: argparse.Namespace) -> None:
    finished, policy = _run_and_policy(arguments)
    from rlrecipes.hub.push import check_push, push

    if policy == "base":
        others = " or ".join(option("policy", name) for name, row in POLICIES.items() if row.stage)
        raise UserError(f"the base is not ours to export; choose {others}")
    if arguments.push is not None:
        check_push(arguments.push)
    quiet()
    from rlrecipes.after.export import export

    folder = export(finished, policy, arguments.merged, arguments.push)
    say(f"exported: {folder}")
    if arguments.push is not None:
        say(f"uploaded: {push(folder, arguments.push)}")


if __name__ == "__main__":
    sys.exit(main())
