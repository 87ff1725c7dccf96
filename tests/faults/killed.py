"""Kills of the whole road at random moments, in rounds: after each round every byte is as without them."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from kills import road_of, survive

from faults.attempt import Outcome
from rlrecipes.profile import ALGORITHMS

ROUNDS, KILLS = 10, 20


def outcomes(folder: Path, done: set[str]) -> Iterator[Outcome]:
    """Each round is tried whole, from a seed of its own."""
    for seed in range(ROUNDS):
        names = [f"seed {seed}, kill {number}" for number in range(KILLS)]
        if set(names) <= done:
            continue
        home, started = folder / f"seed-{seed}", time.monotonic()
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir()
        try:
            with (folder / f"seed-{seed}.log").open("w") as log, contextlib.redirect_stdout(log):
                different = survive(home, KILLS, seed, road_of(ALGORITHMS))
            detail = f"different: {', '.join(different[:3])}" if different else "every byte is the same"
        except (AssertionError, RuntimeError) as error:
            different, detail = ["the road"], str(error)[-300:]
        seconds = round((time.monotonic() - started) / KILLS, 1)
        for name in names:
            yield Outcome("kills", name, "fell" if different else "same", detail, seconds)
        shutil.rmtree(home)
