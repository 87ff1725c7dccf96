"""Whether answers are drawn from a dense copy of the policy: where a card has room for it beside all that a rollout holds.

settled(job, "ppo").dense_rollout -> "always"
"""

from __future__ import annotations

from dataclasses import replace

from rlrecipes.before.needs import fullest, moments
from rlrecipes.before.parts import GIB
from rlrecipes.before.shape import Shape, read_shape
from rlrecipes.job import Job
from rlrecipes.profile import PolicySettings, Profile, sampling_algorithms


def settled(job: Job, table: str) -> PolicySettings:
    """A job's table of an algorithm, where a GPU has made `dense_rollout=auto` `always` or `never`; a CPU takes no copy."""
    from rlrecipes.model.forward import device

    if device().type == "cuda":
        import torch

        room, learned = torch.cuda.get_device_properties(device()).total_memory / GIB, bool(job.recipe.reward.learned)
        profile = with_copy(job.profile, table, read_shape(job.profile, learned), room, learned)
    else:
        profile = job.profile
    settings: PolicySettings = getattr(profile, table)
    return settings


def with_copies(profile: Profile, shape: Shape, room: float, learned: bool) -> Profile:
    """The profile with `dense_rollout=auto` settled, for a card of `room` GiB, for all algorithms that the run has."""
    for table in sampling_algorithms(profile):
        profile = with_copy(profile, table, shape, room, learned)
    return profile


def with_copy(profile: Profile, table: str, shape: Shape, room: float, learned: bool) -> Profile:
    """Likewise for one of them: `always` where the copy has room beside all that a rollout holds."""
    if getattr(profile, table).dense_rollout != "auto":
        return profile
    copied, without = (_told(profile, table, how) for how in ("always", "never"))
    return copied if _most(copied, table, shape, learned) <= room else without


def copy_lines(profile: Profile, now: Profile, shape: Shape, learned: bool) -> list[str]:
    """What `dense_rollout=auto` came to, a line for each algorithm that leaves it to the card."""
    lines = []
    for table in sampling_algorithms(profile):
        if getattr(profile, table) == getattr(now, table):
            continue
        if getattr(now, table).dense_rollout == "always":
            most = _most(now, table, shape, learned)
            came = f"answers are drawn from a dense copy of the policy, with {most:.2f} GiB in all"
        else:
            came = "the card has no room for a dense copy of the policy to draw answers from"
        lines.append(f"{table}.dense_rollout=auto: {came}")
    return lines


def _told(profile: Profile, table: str, how: str) -> Profile:
    return replace(profile, **{table: replace(getattr(profile, table), dense_rollout=how)})


def _most(profile: Profile, table: str, shape: Shape, learned: bool) -> float:
    return fullest(moments(shape, profile, learned=learned)[f"{table} rollout"]).total / GIB
