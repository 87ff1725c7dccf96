"""What the environment may not do to a run: this trains in one process on one device, as the profile says and nothing else.

error: WORLD_SIZE=2 is set for several processes, and this trains in one; start it without a launcher, or unset it
"""

from __future__ import annotations

import os

from rlrecipes.errors import UserError

SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
"""How launchers say how many processes there are."""
HARMLESS = ("ACCELERATE_DEBUG_MODE", "ACCELERATE_LOG_LEVEL", "ACCELERATE_DISABLE_RICH")


def check_environment() -> None:
    """Refuses what a launcher sets for several processes, and what Accelerate would take over a profile's settings.

    One that is set and empty counts as not set, and is unset: Accelerate would read it as a number or a switch, and fail.

    Raises:
        UserError: the sentence names the variable.
    """
    for name, value in sorted(os.environ.items()):
        if value == "" and (name in (*SIZES, "LOCAL_RANK") or name.startswith("ACCELERATE_")):
            del os.environ[name]
            continue
        if (name in SIZES and value not in ("0", "1")) or (name == "LOCAL_RANK" and value != "-1"):
            raise UserError(
                f"{name}={value} is set for several processes, and this trains in one; "
                "start it without a launcher, or unset it"
            )
        if name.startswith("ACCELERATE_") and name not in HARMLESS and value.lower() not in ("0", "no", "false"):
            raise UserError(f"{name}={value} would change the training behind the profile's back; unset it")
