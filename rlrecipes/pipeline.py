"""Runs a recipe's stages in order, each into its own folder and none twice; the command line and Python both call it.

    run_recipe("translation", load_profile("tiny"))["evaluate"]["metrics"]["ppo"]["chrf"] -> {"value": 61.2, …}

Heavy libraries load only when a stage has to run: a run that is finished says so at once, not after ten seconds.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlrecipes.before.asked import asked_profile, fitted, refuse_unlearned, with_algorithms
from rlrecipes.before.needed import is_withheld, needed, required, unneeded, withheld_aloud
from rlrecipes.data.joint import PLUS
from rlrecipes.errors import UserError, option, switch
from rlrecipes.hub.identity import identity, is_another, reading
from rlrecipes.hub.reach import reach_model
from rlrecipes.job import SHARED_STAGES, Job, make_job
from rlrecipes.metrics import estimate
from rlrecipes.profile import Profile, asked_reward, check_profile
from rlrecipes.recipe import Recipe, load_recipe, unknown
from rlrecipes.report.listing import find_runs
from rlrecipes.reward.code import code_of
from rlrecipes.reward.judge import own_judge
from rlrecipes.reward.source import reach_reward_model
from rlrecipes.reward.strength import too_weak
from rlrecipes.reward.terms import fresh, term_states
from rlrecipes.run.circumstances import Stopwatch, git_commit, machine, require_trl, versions
from rlrecipes.run.console import quiet, say, unbroken
from rlrecipes.run.device import device_errors_told
from rlrecipes.run.disk import disk_errors_told
from rlrecipes.run.environment import check_environment
from rlrecipes.run.folder import Run
from rlrecipes.run.gpu import use_one_gpu
from rlrecipes.run.interrupts import handled
from rlrecipes.run.lock import locked
from rlrecipes.run.processes import dismiss, each_after_first, is_first, joined
from rlrecipes.run.settings import put_back, write_settings
from rlrecipes.run.stages import STAGES, below, with_brought
from rlrecipes.run.taken import take


def run_recipe(
    recipe: str | Recipe,
    profile: str | Profile | None = None,
    stages: str | Sequence[str] = (),
    *,
    model: str | None = None,
    overrides: Sequence[str] = (),
    data: str | None = None,
    columns: Mapping[str, str] | None = None,
    seed: int = 0,
    run: str | None = None,
    from_run: str | None = None,
    force: bool = False,
) -> dict[str, dict[str, Any]]:
    """Runs a recipe as the command line does, into `runs/` of the working directory, and leaves finished stages out.

    Args:
        recipe: A recipe, its name, or the names of several joined by `+`, which share `sft` and `reward`.
        profile: A profile or its name; None takes `tiny`, or settings that fit a model of one's own.
        stages: One or some; none means all, as `rlrecipes run`.
        model: The base model, a hub id or a local folder.
        overrides: Settings of the profile to override, such as `sft.max_steps=50` or `terms.learned=0.5`.
        data: A data file or folder, `hub`, `hub:<id>` or `built-in`; None takes the profile's.
        columns: Which columns of the data to read as what, such as `{"target": "post_edit"}`.
        seed: The seed of everything random in training.
        run: The name of the run's folder; None takes the profile's.
        from_run: Another run of the recipe, whose SFT and reward model are taken as they are.
        force: Makes the stages again, with all that stands on them.

    Returns:
        The record of each stage, as its `done.json` has it, by the stage's name; none of an algorithm whose reward model is
        too weak to climb (`ppo.anyway`).

    Raises:
        UserError: something that you can mend; finished stages stay finished.
        Interrupted: a `KeyboardInterrupt`, after the current step was saved; the same call goes on from there.
    """
    with handled(), disk_errors_told(), device_errors_told(), joined():
        wanted = (stages,) if isinstance(stages, str) else stages
        named, weights = _asked(recipe, profile, overrides, model, wanted)

        def make() -> Job:
            job = prepare(recipe, named, weights=weights, data=data, columns=columns, seed=seed, run=run)
            return fitted(job, None, overrides) if profile is None else job

        job = each_after_first(make)
        if from_run is not None:
            check_source(job.recipe.name, from_run, run)
        names = in_order(wanted, job)
        run_stages(job, names, force, from_run)
        made = [stage for stage in names if needed(job, stage) and not is_withheld(job, stage)]
        return {stage: job.run.need(stage) for stage in made}


def _asked(
    recipe: str | Recipe,
    profile: str | Profile | None,
    overrides: Sequence[str],
    model: str | None,
    stages: Sequence[str],
) -> tuple[Profile, list[str]]:
    """The profile that a call asks for, and its overrides of reward weights."""
    if isinstance(profile, Profile):
        if overrides or model is not None:
            raise UserError("a profile that is loaded has its model and overrides; give them to load_profile instead")
        return with_algorithms(profile, stages), []
    named, weights = asked_profile(profile, overrides, model, stages=stages)
    if not isinstance(recipe, str) or PLUS not in recipe:
        whole = load_recipe(recipe) if isinstance(recipe, str) else recipe
        refuse_unlearned(overrides, asked_reward(whole, named, weights))
    return named, weights


def check_source(recipe: str, source: str, run: str | None) -> None:
    """Refuses to take SFT and reward model from a run that is not there, or into one that is not named or is the same.

    Raises:
        UserError: the sentence says which.
    """
    there = [found.name for found in find_runs() if found.recipe == recipe]
    if source not in there:
        raise UserError(unknown("run", source, there, f"there are {', '.join(there) or 'none'} of {recipe}"))
    if run in (None, source):
        raise UserError(f"beside {option('from', source)} name a new run, as {option('run')}")


def in_order(stages: Sequence[str], job: Job) -> tuple[str, ...]:
    """The stages, or all where none is named, in the order in which they run; a shared reward model brings its SFT stage.

    Raises:
        UserError: there is no such stage, or several recipes cannot share it.
    """
    for stage in stages:
        if stage not in STAGES:
            raise UserError(unknown("stage", stage, list(STAGES), f"there are {', '.join(STAGES)}"))
        if job.parts and stage not in SHARED_STAGES:
            raise UserError(f"{job.recipe.name} can share {' and '.join(SHARED_STAGES)} alone; run '{stage}' with each")
    if job.parts:
        return SHARED_STAGES if "reward" in stages or not stages else tuple(stages)
    return tuple(stage for stage in STAGES if stage in stages or not stages)


def prepare(
    recipe: str | Recipe,
    profile: Profile,
    *,
    weights: Sequence[str] = (),
    data: str | None = None,
    columns: Mapping[str, str] | None = None,
    seed: int = 0,
    run: str | None = None,
) -> Job:
    """The job of a recipe, or of several joined by `+`; the profile replaces options that are None.

    Raises:
        UserError: for anything wrong in the names, the data, or the reward model that the profile names.
    """
    check_profile(profile)
    name = recipe if isinstance(recipe, str) else recipe.name
    place = Run(run or profile.name, name)
    own_judge(profile.evaluate.judge)
    if PLUS not in name:
        reach_reward_model(profile)
    source = data or profile.data
    return make_job(recipe, profile, place, weights=weights, source=source, columns=columns, seed=seed)


def run_stages(job: Job, stages: Sequence[str], force: bool = False, source: str | None = None) -> None:
    """Runs `stages` of a job, leaving out those that are finished under the same settings.

    `source` names another run of the recipe, whose SFT and reward model are taken as they are.

    Raises:
        UserError: a stage cannot run, or was finished under other settings without `force`, which removes the stages and
            all that stands on them first; an algorithm alone is asked for, on a reward model that is too weak to climb.
    """
    if not is_first():
        from rlrecipes.stages.attempt import follow

        return follow(job)
    if all(reasons := [unneeded(job, stage) for stage in stages]):
        raise UserError(f"{reasons[0]}; leave out the stage '{stages[0]}', and go on with ppo")
    forced, stages = stages if force else (), with_brought(stages)
    _check_reward_model(job)
    check_environment()
    with unbroken(), locked(job.run.folder):
        job.run.recover()
        if source is not None:
            stages = _without_taken(job, stages, Run(source, job.run.recipe, job.run.root))
        below_them = {lower for stage in stages for lower in below(stage)} - set(stages)
        for stage in STAGES:
            if stage in below_them and required(job, stage) and not withheld_aloud(job, stage):
                job.run.need(stage)
                job.run.is_finished(stage, job.settings(stage))
        if len(stages) == 1 and STAGES[stages[0]].algorithm and (reason := too_weak(job, stages[0])):
            raise UserError(f"{stages[0].upper()} is not run: {reason}")
        if pending := _pending(job, stages, forced):
            job.run.check_removable(pending)
            _run_pending(job, pending, force)
    dismiss()


def _without_taken(job: Job, stages: Sequence[str], other: Run) -> list[str]:
    """Takes what comes before the policy from another run, and returns the stages that are left to run."""
    there = (*SHARED_STAGES, *(("judge",) if other.done("judge") else ()))
    for stage in there:
        if needed(job, stage) and any(stage in (name, *below(name)) for name in stages):
            new = take(job.run, stage, other, job.settings(stage))
            say(f"{job.recipe.name} · {stage}: {'taken' if new else 'taken already'} from {other.stage(stage)}")
    return [stage for stage in stages if stage not in there]


def _check_reward_model(job: Job) -> None:
    """Refuses a run's own reward model: the run would remove it when it makes a stage below again."""
    if (name := job.profile.reward.model) and Path(os.path.expanduser(name)).resolve().is_relative_to(
        job.run.folder.resolve()
    ):
        raise UserError(
            f"reward.model={name} is in this run, {job.run.folder}, itself; name another run ({option('run')})"
        )


def _pending(job: Job, stages: Sequence[str], forced: Sequence[str]) -> list[str]:
    """The stages that have to run, in order; refuses an interrupted one that cannot go on before anything is loaded.

    Those that are `forced` run again, and what they brought along where it has other settings.
    """
    pending: list[str] = []
    for stage in stages:
        if not needed(job, stage):
            continue
        again = stage in forced or (forced and job.run.differs(stage, job.settings(stage)))
        if not again and not set(below(stage)) & set(pending):  # what stands on a stage goes when that is made
            if _is_finished(job, stage) or withheld_aloud(job, stage):
                continue
            job.run.check_begun(stage, _conditions(job, stage))
        elif not forced:
            job.run.is_finished(stage, job.settings(stage))  # which refuses other settings, before it would be removed
        pending.append(stage)
    return pending


def _conditions(job: Job, stage: str) -> dict[str, Any]:
    """Everything that decides a stage's bytes on one machine; an interrupted stage goes on under no other."""
    libraries = {f"library.{name}": version for name, version in versions().items()}
    code = {"reward code": code_of(job.recipe.reward)} if STAGES[stage].climbs else {}
    return job.settings(stage) | libraries | code | {"base": _base_of(job, stage)}


def _base_of(job: Job, stage: str) -> str | None:
    """Digests of a base of one's own and its tokenizer, or what an interrupted stage recorded where either is unknown."""
    name = job.profile.model.name
    weights = None if name == "builtin" else identity(name)
    now = weights and f"{weights[:16]} {reading(name)[:16]}"
    begun = job.run.begun(stage)
    recorded = begun.get("base") if begun else None
    return now if begun is None or (now and recorded) else recorded


def _run_pending(job: Job, pending: Sequence[str], force: bool) -> None:
    for note in job.data.notes:
        say(f"{job.recipe.name}: {note}")
    for reason, count in job.data.dropped.items():
        say(f"{job.recipe.name}: {count} rows left out: {reason}")
    if pending != ["report"] and (choice := use_one_gpu(job.profile.model.device)):
        say(f"{job.recipe.name}: {choice}")
    if "evaluate" in pending and job.data.held_out.prompts:
        example = job.data.held_out.prompts[0]
        for metric in job.metrics:  # one that raises is told before the first hour
            estimate(metric, [*example.answers, ""][:1], [example])
    term_states(fresh(job.recipe.reward))  # what cannot be copied or kept is told before the first hour
    require_trl()
    if job.profile.model.name != "builtin":
        reach_model(job.profile.model.name)
    quiet()
    from rlrecipes.run.determinism import repeatable
    from rlrecipes.run.tracking import sync_command

    with repeatable(job.profile.run.deterministic and pending != ["report"]):
        _make_pending(job, pending, force)
    if command := sync_command(job.run):
        say(f"  tracked offline; upload with: {command}")


def _make_pending(job: Job, pending: Sequence[str], force: bool) -> None:
    from rlrecipes.before.checks import check_aside, check_device, check_lora, check_model_fits, check_taken

    if pending != ["report"]:
        check_device(job.profile)
        check_aside(job, pending)
        check_lora(job)
    if job.profile.reward.model is not None and {"sft", "reward"} & set(pending) and needed(job, "reward"):
        check_taken(job)
    name = _base(job)
    _check_base(job, name, pending)
    check_model_fits(job, name, pending)
    before = write_settings(job.run.folder, job.asked) if job.asked else None
    if force:  # a plain run from here on: interrupted, it goes on without FORCE
        for stage in pending:
            job.run.remove(stage)
    for stage in pending:
        if withheld_aloud(job, stage):
            continue
        try:
            _run_stage(job, name, stage)
        except UserError:  # a later command that says less must not take up what failed here
            if job.asked and stage == pending[0] and not job.run.draft(stage).exists():
                put_back(job.run.folder, before)
            raise


def _check_base(job: Job, name: str, pending: Sequence[str]) -> None:
    """Refuses to build on stages that were made on another base under the same name."""
    for stage in STAGES:
        record = None if stage in pending else job.run.done(stage)
        if record and is_another(name, record.get("base")):
            raise UserError(
                f"{job.run.stage(stage)} was made on other weights or another config.json than {name} has now; put those "
                f"back, name another run ({option('run')}), or make it again with {switch('force')}"
            )


def _is_finished(job: Job, stage: str) -> bool:
    finished = job.run.is_finished(stage, job.settings(stage))
    if finished:
        changed = STAGES[stage].climbs and _has_other_reward(job, stage)
        what = f"; the code of its reward has changed since, and {switch('force')} makes it again" if changed else ""
        say(f"{job.recipe.name} · {stage}: done already, in {job.run.stage(stage)}{what}")
    return finished


def _has_other_reward(job: Job, stage: str) -> bool:
    """Whether the code of the reward's terms has changed since an algorithm was finished."""
    made_by = job.run.need(stage).get("reward_code")
    return made_by is not None and made_by != code_of(job.recipe.reward)


def _reward_code(job: Job) -> dict[str, Any]:
    """The digest of the code of the reward's terms, and of each file that `reward.function` names."""
    functions = {f.name: {"file": str(f.file), "sha256": f.sha256} for f in job.functions}
    return {"reward_code": code_of(job.recipe.reward), **({"reward_functions": functions} if functions else {})}


def _base(job: Job) -> str:
    """The base model's hub id or folder; trains the embedded base if it is the profile's and not there yet."""
    from rlrecipes.model.loading import check_model
    from rlrecipes.model.pretrain import embedded_base
    from rlrecipes.model.tokens import open_with_note

    if job.profile.model.name == "builtin":
        return str(embedded_base(job.profile.base, job.run.root, job.profile.checkpoint.seconds, job.recipe.name))
    check_model(job.profile.model.name, job.profile.model)
    _, note = open_with_note(job.profile.model.name)
    if note:
        say(f"{job.recipe.name}: {note}")
    return job.profile.model.name


def _run_stage(job: Job, model_name: str, stage: str) -> None:
    say(f"{job.recipe.name} · {stage}")
    from rlrecipes.stages.attempt import make_stage

    stopwatch = Stopwatch()
    settings = job.settings(stage)
    try:
        record = make_stage(job, model_name, stage, _conditions(job, stage))
    except BaseException:
        job.run.abandon(stage)
        raise
    seconds = round(stopwatch.seconds() + (record.get("resumed") or {}).get("seconds", 0), 1)
    job.run.close(
        stage,
        {
            **record,
            "settings": settings,
            "seed": job.seed,
            "data": job.described_data(),
            "base": identity(model_name),
            **(_reward_code(job) if STAGES[stage].climbs else {}),
            "versions": versions(),
            "machine": machine(),
            "git_commit": git_commit(),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "seconds": seconds,
            # of a stage that was interrupted, only the last part's time is known
            "cpu_seconds": None if record.get("resumed") else stopwatch.cpu_seconds(),
            "peak_memory_mb": stopwatch.peak_memory_mb(),
        },
    )
    for warning in record["warnings"]:
        say(f"  warning: {warning}")
    say(f"  {seconds:.0f} s, peak {stopwatch.peak_memory_mb()} MB → {job.run.stage(stage)}")
