"""The command line: `python -m rlrecipes <stage or command> <recipe> …`.

Help, listing, showing and every usage error answer without importing torch.
"""

from __future__ import annotations

import argparse
import io
import math
import os
import re
import sys
from collections.abc import Sequence

from rlrecipes.after.finished import Trained, find_trained
from rlrecipes.before.plan import plan
from rlrecipes.errors import UserError
from rlrecipes.hub.reach import reach_model
from rlrecipes.job import PLUS, Job, make_job, weighted
from rlrecipes.job import SHARED_STAGES as SHARED
from rlrecipes.pipeline import run_stages
from rlrecipes.profile import LOWEST_TEMPERATURE, Profile, load_profile, profile_names
from rlrecipes.recipe import BUILT_IN, Reward, load_recipe, recipe_names, unknown
from rlrecipes.reward.source import reach_reward_model
from rlrecipes.run.allocator import keep_freed_memory
from rlrecipes.run.console import end_bars, quiet, say
from rlrecipes.run.folder import Run
from rlrecipes.run.interrupts import Interrupted, asked, handled
from rlrecipes.run.stages import POLICIES, STAGES
from rlrecipes.text import shortened

BEFORE = {
    "list": "the recipes and profiles there are",
    "plan": "what each stage needs of a GPU's memory, and the largest batches that fit a card",
    "show": "a recipe's data, reward terms and metrics, without training anything",
    "run": "all stages of a recipe, those that are finished left out",
    "demo": "all recipes end to end, then one report over them",
}
AFTER = {
    "chat": "talk to what a run has trained; or one answer for each line of standard input",
    "export": "a run's policy as PEFT and Transformers load it, with a model card",
}
"""Commands beside the stages."""

OPTIONS = {
    "policy": ("chat", "export"),
    "temperature": ("chat",),
    "json": ("chat",),
    "merged": ("export",),
    "push": ("export",),
    "card": ("plan",),
}
"""Options that some commands alone take."""
INTERRUPTED = 75


def commands() -> dict[str, str]:
    """The commands there are, each with its line of help."""
    return BEFORE | {name: stage.help for name, stage in STAGES.items()} | AFTER


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        raise UserError(f"{message}; see `python -m rlrecipes --help`")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status: 0, 2 for what the user can mend, 75 when interrupted."""
    # Threads that spin while they wait stall each other as soon as another process wants a core (measured: 30 times
    # slower); threads that sleep at once take twice as long on a quiet machine. A short spin costs little of either.
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")
    keep_freed_memory()
    with handled():
        return _status(list(sys.argv[1:] if argv is None else argv))


def _status(argv: list[str]) -> int:
    again = "give the same command again"
    try:
        arguments = _parse(argv)
        again += " without FORCE=1" if arguments.force else ""
        _command(arguments)
    except UserError as error:
        end_bars()
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except BaseException as error:
        if not (isinstance(error, KeyboardInterrupt) or asked()):  # libraries may turn an interrupt into another error
            raise
        end_bars()
        saved = f", {error}" if isinstance(error, Interrupted) and error.args else ""
        print(f"\ninterrupted{saved}; {again} to go on", file=sys.stderr)
        return INTERRUPTED
    return 0


def _parse(argv: list[str]) -> argparse.Namespace:
    listed = "\n".join(f"  {name:<9} {text}" for name, text in commands().items())
    parser = _Parser(
        prog="python -m rlrecipes",
        description="Fine-tune a language model with a reward: recipes from data to an evaluated PPO policy.",
        epilog=f"commands:\n{listed}\n\nrecipes: {', '.join(recipe_names())}\nprofiles: {', '.join(profile_names())}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", nargs="?", help="one of those below")
    parser.add_argument("recipe", nargs="?", help="one of those below; for reward also several, joined by +")
    parser.add_argument("settings", nargs="*", metavar="table.key=value", help="overrides, as sft.max_steps=50")
    parser.add_argument("--profile", default="tiny", help="how big to run (default: tiny)")
    parser.add_argument("--model", help="hub id or local checkpoint folder (default: the profile's)")
    parser.add_argument("--data", help="a data file or folder, hub, hub:<id>, or built-in (default: the profile's)")
    parser.add_argument(
        "--columns", nargs="+", default=[], metavar="name=column", help="which columns of --data to read as what"
    )
    parser.add_argument("--card", help="for plan: GiB of a GPU, or its name, such as rtx4090 (default: the profile's)")
    parser.add_argument("--seed", type=int, default=0, help="of everything random in training (default: 0)")
    parser.add_argument("--run", help="name of the run's folder under runs/ (default: the profile's name)")
    parser.add_argument("--force", action="store_true", help="make the stages again, with all that stands on them")
    parser.add_argument("--policy", help=f"chat, export: {', '.join(POLICIES)} (default: the last that is trained)")
    parser.add_argument("--temperature", type=float, help="chat: of sampling (default: 0, greedy)")
    parser.add_argument("--json", action="store_true", help="chat: prompts and answers are lines of JSON")
    parser.add_argument("--merged", action="store_true", help="export: also whole weights, merged in full precision")
    parser.add_argument("--push", metavar="org/name", help="export: upload to this repository of the Hugging Face hub")
    arguments = parser.parse_intermixed_args(argv)
    if arguments.command is None:
        raise UserError(f"name a command: {', '.join(commands())}; see `python -m rlrecipes --help`")
    if arguments.command not in commands():
        raise UserError(unknown("command", arguments.command, list(commands()), f"there are {', '.join(commands())}"))
    for option, takers in OPTIONS.items():
        value = getattr(arguments, option)
        if value is not None and value is not False and arguments.command not in takers:
            raise UserError(f"--{option} belongs to `{'` and `'.join(takers)}`; leave it out")
    for option in ("model", "data", "card", "run", "policy", "push"):
        if getattr(arguments, option) == "":
            raise UserError(f"--{option} is empty; give it a value or leave it out")
    if not 0 <= arguments.seed < 2**32:
        raise UserError(f"--seed is {arguments.seed}; it must be a whole number from 0 to {2**32 - 1}")
    if arguments.recipe and "=" in arguments.recipe:
        arguments.settings.insert(0, arguments.recipe)
        arguments.recipe = None
    return arguments


def _command(arguments: argparse.Namespace) -> None:
    if arguments.command == "list":
        _list()
    elif arguments.command == "demo":
        _demo(arguments)
    else:
        if arguments.recipe is None:
            raise UserError(f"`{arguments.command}` needs a recipe: {', '.join(recipe_names())}")
        if PLUS in arguments.recipe and arguments.command not in SHARED:
            raise UserError(
                f"`{arguments.command}` is for one recipe; several share `reward` alone, as `reward {arguments.recipe}`, "
                "and each then uses it by reward.model=…"
            )
        if arguments.command == "plan":
            return _plan(arguments)
        if arguments.command in ("chat", "export"):
            return _with_trained(arguments)
        job = _job(arguments, arguments.recipe)
        if arguments.command == "show":
            from rlrecipes.before.show import show

            print(show(job))
        else:
            stages = {"run": tuple(STAGES), "reward": SHARED if PLUS in arguments.recipe else ("reward",)}
            _run(job, stages.get(arguments.command, (arguments.command,)), arguments.force)


def _with_trained(arguments: argparse.Namespace) -> None:
    for option in ("model", "data", "columns", "settings", "force"):
        if getattr(arguments, option):
            said = arguments.settings[0] if option == "settings" else f"--{option}"
            raise UserError(f"`{arguments.command}` takes all from the run as it was trained; leave {said} out")
    name = arguments.run or load_profile(arguments.profile).name
    trained = find_trained(Run(_run_name(name), arguments.recipe), load_recipe(arguments.recipe))
    policy = trained.policy(arguments.policy)
    base = trained.base_model()  # one that cannot be had is told before the libraries are loaded
    if not trained.embedded:
        reach_model(base, None)
    if arguments.command == "chat":
        _chat(trained, policy, arguments)
    else:
        _export(trained, policy, arguments)


def _chat(trained: Trained, policy: str, arguments: argparse.Namespace) -> None:
    if sys.stdin is None:
        raise UserError("`chat` has no standard input; talk to it in a terminal, or send it a prompt a line")
    temperature, talking = arguments.temperature or 0.0, sys.stdin.isatty()
    if not math.isfinite(temperature) or temperature < 0 or 0 < temperature < LOWEST_TEMPERATURE:
        raise UserError(
            f"--temperature is {temperature}; it must be 0, which is greedy, or a finite number from {LOWEST_TEMPERATURE} on"
        )
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # bytes that are no text are told with their line
    if arguments.json and talking:
        raise UserError("--json is for prompts on standard input; send them in, as `chat … --json < prompts.jsonl`")
    if talking:
        print(f"loading {trained.run.folder} …", file=sys.stderr)
    quiet()
    from transformers import set_seed

    from rlrecipes.after.chat import answer_lines, load_voice, talk

    voice = load_voice(trained, temperature)
    set_seed(arguments.seed)
    if talking:
        talk(voice, policy)
    else:
        answer_lines(voice, policy, sys.stdin, arguments.json)


def _export(trained: Trained, policy: str, arguments: argparse.Namespace) -> None:
    from rlrecipes.hub.push import check_push, push

    if policy == "base":
        others = " or ".join(f"POLICY={name}" for name, trained in POLICIES.items() if trained.stage)
        raise UserError(f"the base is not ours to export; choose {others}")
    if arguments.push is not None:
        check_push(arguments.push)
    quiet()
    from rlrecipes.after.export import export

    folder = export(trained, policy, arguments.merged, arguments.push)
    say(f"exported: {folder}")
    if arguments.push is not None:
        say(f"uploaded: {push(folder, arguments.push)}")


def _list() -> None:
    for name in recipe_names():
        try:
            print(f"{name:<20} {load_recipe(name).summary}")
        except UserError as error:  # the others can be used all the same
            print(f"{name:<20} {error}")
    print(f"\nprofiles: {', '.join(profile_names())}")


def _profile(arguments: argparse.Namespace) -> tuple[Profile, list[str]]:
    """The profile as the command line asks for it, and the weights of reward terms, which are the recipe's."""
    weights = [s for s in arguments.settings if s.startswith("terms.")]
    return load_profile(
        arguments.profile, [s for s in arguments.settings if s not in weights], arguments.model
    ), weights


def _refuse_unlearned(arguments: argparse.Namespace, reward: Reward) -> None:
    """Refuses settings of a reward model that there will not be; where a recipe itself has none, only naming one."""
    if not reward.learned:
        idle = "reward." if any(s.startswith("terms.learned=") for s in arguments.settings) else "reward.model="
        for setting in arguments.settings:
            if setting.startswith(idle):
                raise UserError(f"{setting} has no effect while terms.learned is 0; give that a weight or leave it out")


def _job(arguments: argparse.Namespace, recipe: str) -> Job:
    profile, weights = _profile(arguments)
    if PLUS not in recipe:
        _refuse_unlearned(arguments, weighted(load_recipe(recipe).reward, weights))
    run = Run(_run_name(arguments.run or profile.name), recipe)
    columns = dict(pairs := [_column(text) for text in arguments.columns])
    if len(columns) < len(pairs):
        raise UserError("--columns names one column for two; name each once")
    source = arguments.data or profile.data
    if PLUS not in recipe:
        reach_reward_model(profile)
    return make_job(recipe, profile, run, weights=weights, source=source, columns=columns, seed=arguments.seed)


def _plan(arguments: argparse.Namespace) -> None:
    """The data are not read: how long rows may get, the profile says."""
    for option in ("data", "columns", "run", "force"):
        if getattr(arguments, option):
            raise UserError(f"`plan` goes by the model and the profile alone; leave --{option} out")
    profile, weights = _profile(arguments)
    reward = weighted(load_recipe(arguments.recipe).reward, weights)
    _refuse_unlearned(arguments, reward)
    print(plan(profile, bool(reward.learned), arguments.card))


def _run_name(name: str) -> str:
    if not re.fullmatch(r"\w[\w.=+-]*", name) or len(name.encode()) > 200:
        raise UserError(f"'{shortened(name)}' cannot name a run; use letters, digits, '-' and '_', 200 at most")
    return name


def _column(text: str) -> tuple[str, str]:
    name, equals, column = text.partition("=")
    if not (name and equals and column):
        raise UserError(f"cannot read the column '{text}'; write name=column, such as target=post_edit")
    return name, column


def _run(job: Job, stages: Sequence[str], force: bool) -> None:
    run_stages(job, stages, force)
    if stages[-1] == "report":
        from rlrecipes.report.page import short_table

        print(f"\n{short_table([job.run])}\nreport: {job.run.stage('report') / 'index.html'}")


def _demonstrable() -> list[str]:
    """The recipes that have a world; which ones have not, or cannot be used, is said.

    Raises:
        UserError: no recipe has one.
    """
    worlds = []
    for name in recipe_names():
        try:
            if load_recipe(name).builtin is None:
                raise UserError(f"{name} has no built-in data")
            worlds.append(name)
        except UserError as error:
            say(f"left out: {error}")
    if not worlds:
        raise UserError("no recipe has built-in data to demonstrate; run one on your own, as `run <recipe> --data …`")
    return worlds


def _demo(arguments: argparse.Namespace) -> None:
    if arguments.recipe or arguments.data or arguments.columns:
        raise UserError("`demo` runs all recipes on their built-in data; name no recipe and no data")
    arguments.data = BUILT_IN
    jobs = [_job(arguments, name) for name in _demonstrable()]
    from rlrecipes.report.page import combine, short_table

    for job in jobs:
        run_stages(job, tuple(STAGES), arguments.force)
    runs = [job.run for job in jobs]
    page = combine(runs)
    print(f"\n{short_table(runs)}\nreport: {page}")


if __name__ == "__main__":
    sys.exit(main())
