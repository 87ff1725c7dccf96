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
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import NoReturn

from rlrecipes.after.finished import FinishedRun, find_finished_run
from rlrecipes.before.asked import PROFILE, refuse_unlearned
from rlrecipes.before.cards import gib
from rlrecipes.before.plan import gpu_profile, plan
from rlrecipes.command.job import (
    job_of,
    kept,
    of_each_seed,
    read_columns,
    rows_of,
    settings_of,
    source_of,
    usual_run,
)
from rlrecipes.command.options import REWARD, Command, parse
from rlrecipes.errors import UserError, command, option, switch
from rlrecipes.hub.reach import reach_model
from rlrecipes.pipeline import in_order, run_stages
from rlrecipes.profile import LOWEST_TEMPERATURE, asked_reward, check_once, functions_joined, profile_names
from rlrecipes.recipe import BUILT_IN, load_recipe, recipe_names
from rlrecipes.run.alive import OthersEndedError
from rlrecipes.run.allocator import grow_in_place, keep_freed_memory
from rlrecipes.run.console import end_bars, open_streams, quiet, say, shown, unbroken
from rlrecipes.run.device import device_errors_told
from rlrecipes.run.disk import disk_errors_told
from rlrecipes.run.environment import ApartError
from rlrecipes.run.folder import Run
from rlrecipes.run.gpu import VARIABLE, use_one_gpu
from rlrecipes.run.interrupts import Interrupted, handled, stop_requested, tell_end
from rlrecipes.run.leaving import leave
from rlrecipes.run.processes import each_after_first, is_first, joined
from rlrecipes.run.stages import POLICIES, STAGES

INTERRUPTED = 75


def commands() -> dict[str, Command]:
    """All commands, by name."""
    size, place = ("profile", "model"), ("seed", "run", "force")
    data, policy = ("data", "columns", "settings"), ("profile", "run", "policy")
    taking = {policy.stage for policy in POLICIES.values() if policy.stage not in (None, "sft")}
    stages = {
        name: Command(stage.help, _run, (*size, *data, *place, *(["from"] if name in taking else [])), several=True)
        for name, stage in STAGES.items()
    }
    return {
        "list": Command("the recipes and profiles there are", _list, recipe=False, settings=False),
        "plan": Command(
            "what each stage needs of a GPU's memory, the largest batches that fit a card, and hours",
            _plan,
            (*size, *data, "run", "card"),
        ),
        "show": Command(
            "a recipe's data, reward terms and metrics, without training anything", _show, (*size, *data, "run")
        ),
        "run": Command(
            "all stages of a recipe, those that are finished left out",
            _run,
            (*size, *data, *place, "from", "seeds"),
            several=True,
        ),
        "demo": Command(
            "all recipes end to end, then one report over them", _demo, (*size, *place), recipe=False, several=True
        ),
        **stages,
        "runs": Command("all runs: what they reached, and how far they are", _runs, recipe=False, settings=False),
        "compare": Command(
            "runs side by side: settings, paired results, curves on the same axes",
            _compare,
            ("recipe",),
            recipe=False,
            settings=False,
            runs=True,
        ),
        "chat": Command(
            "talk to what a run has trained; or one answer for each line of standard input",
            _chat,
            (*policy, "temperature", "seed", "json"),
            settings=False,
        ),
        "export": Command(
            "a run's policy as PEFT and Transformers load it, with a model card",
            _export,
            (*policy, "merged", "push", "to"),
            settings=False,
        ),
        "examine": Command(
            "what a run's reward model has learnt, or one from elsewhere (reward.model=…), as a page and a table",
            _examine,
            ("profile", "data", "columns", "run", "to"),
            several=True,
        ),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status: 0, 2 for an error that the user can mend, 75 for an interruption."""
    # Threads that spin while they wait stall each other as soon as another process wants a core (measured: 30 times
    # slower); threads that sleep at once take twice as long on a quiet machine. A short spin costs little of either.
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")
    keep_freed_memory()
    grow_in_place()
    open_streams()
    with handled():
        return _status(list(sys.argv[1:] if argv is None else argv))


def _status(argv: list[str]) -> int:
    again, first = "give the same command again", is_first()
    try:
        arguments = parse(argv, commands())
        again += f" without {switch('force')}" if arguments.force else ""
        command = commands()[arguments.command]
        if not (command.several or first):
            return 0  # the first process does it by itself
        with disk_errors_told(again), device_errors_told(again), joined() if command.several else nullcontext():
            command.act(arguments)
            if sys.stdout is not None:
                sys.stdout.flush()  # here, where a full disk can still be told
    except UserError as error:
        end_bars()
        interrupted = isinstance(error, OthersEndedError) and error.interrupted
        said = f"interrupted; {again} to go on" if interrupted else f"error: {' '.join(str(error).split())}"
        if error.said_here if isinstance(error, OthersEndedError) else first or isinstance(error, ApartError):
            with unbroken():  # standard error may be on the full disk, too
                print(shown(said), file=sys.stderr)
        return INTERRUPTED if interrupted else 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except BaseException as error:
        # Libraries may turn an interrupt into another error.
        if not (isinstance(error, KeyboardInterrupt) or stop_requested()):
            raise
        tell_end()
        end_bars()
        note = f", {error}" if isinstance(error, Interrupted) and error.args else ""
        if first:
            with unbroken():
                print(shown(f"\ninterrupted{note}; {again} to go on"), file=sys.stderr)
        return INTERRUPTED
    return 0


def _list(arguments: argparse.Namespace) -> None:
    for name in recipe_names():
        try:
            say(f"{name:<20} {load_recipe(name).summary}")
        except UserError as error:  # the other recipes still work
            say(f"{name:<20} {error}")
    say(f"\nprofiles: {', '.join(profile_names())}")


def _plan(arguments: argparse.Namespace) -> None:
    """Memory is planned for the longest rows that the profile allows, time for the rows of the data where they are here.
    Without a profile, a model is planned for a GPU, not for this CPU."""
    if arguments.profile is None and kept(arguments, arguments.recipe) is None:
        arguments.profile = gpu_profile(gib(arguments.card)) if arguments.card and arguments.model else PROFILE
    own, profile, weights = settings_of(arguments, arguments.recipe)
    reward = asked_reward(load_recipe(arguments.recipe), profile, weights)
    refuse_unlearned(arguments.overrides, reward)
    run = Run(arguments.run or profile.name, arguments.recipe)
    say(plan(profile, bool(reward.learned), arguments.card, run, rows_of(arguments, own, profile, weights)))


def _show(arguments: argparse.Namespace) -> None:
    from rlrecipes.before.show import show

    say(show(job_of(arguments, arguments.recipe)))


def _run(arguments: argparse.Namespace) -> None:
    if arguments.seeds is not None:
        return _run_seeds(arguments)
    job = each_after_first(lambda: job_of(arguments, arguments.recipe))
    stages = in_order(() if arguments.command == "run" else (arguments.command,), job)
    run_stages(job, stages, arguments.force, source_of(arguments))
    if stages[-1] == "report" and is_first():
        from rlrecipes.report.page import short_table
        from rlrecipes.report.records import not_run

        why = not_run({"evaluate": job.run.done("evaluate") or {}})
        first = f"{why}\n" if why else ""
        say(f"\n{first}{short_table([job.run])}\nreport: {job.run.stage('report') / 'index.html'}")


def _run_seeds(arguments: argparse.Namespace) -> None:
    jobs = each_after_first(lambda: [job_of(one, arguments.recipe) for one in of_each_seed(arguments)])
    for job in jobs:
        run_stages(job, tuple(STAGES), arguments.force)
    if not is_first():
        return
    arguments.runs = [job.run.name for job in jobs]
    _compare(arguments)


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
    if any("=" not in setting for setting in arguments.overrides):
        raise UserError("`demo` runs all recipes on their built-in data; name no recipe and no data")
    arguments.data = BUILT_IN
    jobs = each_after_first(lambda: [job_of(arguments, name) for name in _recipes_to_demonstrate()])
    from rlrecipes.report.page import combine, short_table

    for job in jobs:
        run_stages(job, tuple(STAGES), arguments.force)
    if not is_first():
        return
    runs = [job.run for job in jobs]
    page = combine(runs)
    say(f"\n{short_table(runs)}\nreport: {page}")


def _runs(arguments: argparse.Namespace) -> None:
    from rlrecipes.report.listing import find_runs, listing

    runs = find_runs()
    say(listing(runs) if runs else f"there are no runs yet; `{command('demo')}` makes some")


def _compare(arguments: argparse.Namespace) -> None:
    """Says the short text; the page has the rest."""
    from rlrecipes.report.compare import compare

    page, text = compare(arguments.runs, arguments.recipe)
    say(f"{text}\ncompared: {page}")


def _run_and_policy(arguments: argparse.Namespace, others: Sequence[str] = ()) -> tuple[FinishedRun, str]:
    """The finished run and the policy that the command line names, or one of `others`."""
    name = usual_run(arguments)
    finished = find_finished_run(Run(name, arguments.recipe), load_recipe(arguments.recipe))
    policy = arguments.policy if arguments.policy in others else finished.policy(arguments.policy)
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
    if note := use_one_gpu(another=VARIABLE):
        print(note, file=sys.stderr)  # standard output is for answers
    quiet()
    from transformers import set_seed

    from rlrecipes.after.chat import answer_lines, load_voice, talk

    voice = load_voice(finished, temperature)
    set_seed(arguments.seed or 0)
    if talking:
        talk(voice, policy)
    else:
        answer_lines(voice, policy, sys.stdin, arguments.json)


def _export(arguments: argparse.Namespace) -> None:
    finished, policy = _run_and_policy(arguments, [REWARD])
    from rlrecipes.hub.push import check_push, push

    if policy == "base":
        others = " or ".join(option("policy", name) for name, row in POLICIES.items() if row.stage)
        raise UserError(f"the base is not ours to export; choose {others}")
    if policy == REWARD and (arguments.merged or arguments.push):
        raise UserError(
            f"a reward model is always merged, and stays here; leave {switch('merged')} and {option('push')} out"
        )
    if arguments.push is not None:
        check_push(arguments.push)
    if note := use_one_gpu(another=VARIABLE):
        say(note)
    quiet()
    from rlrecipes.after.export import export

    place = arguments.to and Path(arguments.to)
    if policy == REWARD:
        from rlrecipes.after.reward_export import export_reward

        return say(f"exported: {export_reward(finished, place)}")
    folder = export(finished, policy, arguments.merged, arguments.push, place)
    say(f"exported: {folder}")
    if arguments.push is not None:
        say(f"uploaded: {push(folder, arguments.push)}")


def _examine(arguments: argparse.Namespace) -> None:
    from rlrecipes.after.examine.request import request

    arguments.overrides = functions_joined(arguments.overrides)
    check_once(arguments.overrides)
    columns, profile = read_columns(arguments.columns), arguments.profile or PROFILE
    named = (arguments.recipe, arguments.run, profile, arguments.data, columns, arguments.overrides)
    asked = each_after_first(lambda: request(*named))
    if note := use_one_gpu(asked.settings.device, VARIABLE if asked.finished else "model.device"):
        say(note)
    quiet()
    from rlrecipes.after.examine.examination import examine

    say(f"examined: {examine(asked, arguments.to and Path(arguments.to))}")


def process() -> NoReturn:
    """Runs the process's own command, and ends the process."""
    leave(main)


if __name__ == "__main__":
    process()
