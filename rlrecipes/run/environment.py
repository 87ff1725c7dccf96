"""What the environment says of a run: which of several processes this is, and what would change the training unseen.

    torchrun --nproc_per_node 2 -m rlrecipes sft translation    WORLD_SIZE=2, RANK=0 and RANK=1, MASTER_ADDR=…, …

error: ACCELERATE_USE_FSDP=true would change the training behind the profile's back: …; unset it
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from rlrecipes.errors import UserError

MPI = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
"""How launchers of another kind say how many processes there are; they name no address to meet at."""
STANDING = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What `torchrun` and `accelerate launch` leave, and Accelerate would read: we hide it, and it stays in its one process."""
LAUNCHERS = ("GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK", "ROLE_WORLD_SIZE", "ROLE_NAME")
AGENT, ATTEMPT = "TORCHELASTIC_USE_AGENT_STORE", "TORCHELASTIC_RESTART_COUNT"

HARMLESS = (
    *("ACCELERATE_DEBUG_MODE", "ACCELERATE_LOG_LEVEL", "ACCELERATE_DISABLE_RICH", "ACCELERATE_CPU_AFFINITY"),
    *("ACCELERATE_DYNAMO_MODE", "ACCELERATE_DYNAMO_USE_FULLGRAPH", "ACCELERATE_DYNAMO_USE_DYNAMIC"),
    "ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION",
)
"""Those of Accelerate that change nothing; how to compile counts for nothing while ACCELERATE_DYNAMO_BACKEND says no."""
REASONS = {
    "ACCELERATE_USE_FSDP": "FSDP parts the base among the devices, and sampling reads all of a 4-bit base at every token, "
    "so it is whole on each",
    "ACCELERATE_USE_DEEPSPEED": "ZeRO parts optimizer states and gradients, and those of adapters are megabytes; its stage 3 "
    "parts the base, which sampling reads whole",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM has models of its own, and none in 4-bit with adapters",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "tensors and sequences are not parted here, rows are",
    "ACCELERATE_MIXED_PRECISION": "model.dtype says in what a profile computes",
    "ACCELERATE_DYNAMO_BACKEND": "rows of ever other lengths would be compiled again and again",
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "the profile's tables say how many micro-batches a batch has",
}
"""Why what a launcher asks for is refused; in the order in which they are looked at."""
NO = ("0", "no", "false")


class ApartError(UserError):
    """A process cannot meet the others, or does not know them: each says so itself."""


@dataclass(frozen=True)
class Standing:
    """Where a process stands among those that a launcher started."""

    rank: int
    world: int
    """How many there are."""
    local_rank: int = 0
    """Its place among those on this machine."""
    local_world: int = 1
    """How many are on this machine."""
    address: str = ""
    port: int = 0
    """Where they meet."""
    served: bool = False
    """Whether the launcher keeps the store that they meet at; else the first process does."""
    attempt: str = "0"
    """How often the launcher has started them anew."""


def standing() -> Standing | None:
    """What a launcher left in the environment; None where it started one process, or there was none.

    Raises:
        ApartError: it started several and does not say all that is needed.
    """
    _drop_empty()
    if os.environ.get("WORLD_SIZE", "1") in ("0", "1"):
        _refuse_others()
        return None
    try:
        values = {name: int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "MASTER_PORT")}
        place = Standing(
            values["RANK"],
            values["WORLD_SIZE"],
            int(os.environ.get("LOCAL_RANK", values["RANK"])),
            int(os.environ.get("LOCAL_WORLD_SIZE", values["WORLD_SIZE"])),
            os.environ["MASTER_ADDR"],
            values["MASTER_PORT"],
            os.environ.get(AGENT) == "True",
            os.environ.get(ATTEMPT, "0"),
        )
    except (KeyError, ValueError) as error:
        wrong = f"{error.args[0]} is missing" if isinstance(error, KeyError) else "one of its numbers is none"
        raise ApartError(
            f"WORLD_SIZE={os.environ['WORLD_SIZE']} is set for several processes, and {wrong}; start them with torchrun or "
            "accelerate launch, which set all that is needed, or unset it"
        ) from None
    if not 0 <= place.rank < place.world:
        raise ApartError(f"RANK={place.rank} is none of WORLD_SIZE={place.world} processes; start them with torchrun")
    return place


def rank_said() -> int:
    """The rank that a launcher left in the environment, before anything is checked; 0 where there is none."""
    several = os.environ.get("WORLD_SIZE", "") not in ("", "0", "1")
    rank = os.environ.get("RANK", "0") if several else "0"
    return int(rank) if rank.isdigit() else 0


def check_environment() -> None:
    """Refuses what Accelerate would take over a profile's settings, and processes that could not meet.

    One that is set and empty counts as not set, and is unset: Accelerate would read it as a number or a switch, and fail.

    Raises:
        UserError: the sentence names the variable.
    """
    if standing() is None:
        hide()  # Accelerate makes a group of LOCAL_RANK=0, too
    for name, value in sorted(os.environ.items(), key=lambda item: [*REASONS, item[0]].index(item[0])):
        if not name.startswith("ACCELERATE_") or name in HARMLESS or value.lower() in NO:
            continue
        if name == "ACCELERATE_USE_CPU":
            os.environ["CUDA_VISIBLE_DEVICES"] = ""  # so that all of the run is there, not Accelerate's part alone
            del os.environ[name]
        elif (name, value) != ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1"):
            why = f": {REASONS[name]}" if name in REASONS else ""
            raise UserError(f"{name}={value} would change the training behind the profile's back{why}; unset it")


def hide() -> None:
    """Takes what a launcher left out of the environment: this process's libraries, and its children, train as one."""
    for name in [*STANDING, *LAUNCHERS, *(name for name in os.environ if name.startswith("TORCHELASTIC_"))]:
        os.environ.pop(name, None)


def _drop_empty() -> None:
    for name, value in list(os.environ.items()):
        if value == "" and (name in (*MPI, *STANDING) or name.startswith("ACCELERATE_")):
            del os.environ[name]


def _refuse_others() -> None:
    """Refuses several processes that no launcher of ours started; a launcher of one leaves LOCAL_RANK=0 beside its size."""
    for name in (*MPI, "LOCAL_RANK"):
        value = os.environ.get(name)
        alone = ("-1", "0") if name == "LOCAL_RANK" and "WORLD_SIZE" in os.environ else ("-1",)
        if value is not None and value not in (alone if name == "LOCAL_RANK" else ("0", "1")):
            raise UserError(
                f"{name}={value} is set for several processes, which this cannot bring together; start them with torchrun "
                "or accelerate launch, or unset it"
            )
