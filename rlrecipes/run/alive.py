"""Whether the other processes of a run are alive, and why one of them ended: so that none waits for ever.

    {"rank": 1, "kind": "error", "text": "the PPO loss is NaN or infinite …"}

Each process has a thread that counts up in a store every second and looks at the others' counts: the first process at all
of them, the others at the first. A process that is killed, stopped or cut off no longer counts. One that ends by an error
leaves a note. A process that works for long counts on, so nobody takes that for a stall.
"""

from __future__ import annotations

import _thread
import contextlib
import json
import os
import platform
import socket
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from rlrecipes.errors import UserError
from rlrecipes.run.environment import ApartError, Standing

BEAT = 1.0
"""Seconds between two counts."""
SILENCE = 30.0
"""Seconds without a count after which a process is lost, unless the one that looks was kept from its own work as well: by a
machine with too much to do, or by a Ctrl-Z that stopped all of them."""
SUSPECTED = 6.0
"""Likewise once the connection to one of them broke: then one is known to be lost, and not yet which."""
ANSWER = 10.0
"""Seconds in which the store has to answer."""
GRACE = 15.0
"""Seconds that a process has to end by itself after another one ended."""
JOINING = timedelta(seconds=300)
"""The longest wait for a process that starts later than the others."""
PATIENT = 5.0
"""Seconds after which the first process says that it waits for others."""
ERROR, INTERRUPTED, BROKE, LOST = "error", "interrupted", "broke", "lost"
NOTE, HEARD, HERE = "ended", "heard", "here"


class OthersEndedError(UserError):
    """Another process ended, and so does this one."""

    def __init__(self, sentence: str, interrupted: bool, said_here: bool) -> None:
        super().__init__(sentence)
        self.interrupted = interrupted
        """Whether a signal asked it to."""
        self.said_here = said_here
        """Whether this process is the one that tells the console."""


def meeting(place: Standing, host: bool) -> Any:
    """A connection of one's own to the store; the first to ask with `host` opens it.

    Raises:
        ApartError: there is no answer.
    """
    from torch._C._distributed_c10d import PrefixStore, TCPStore

    try:
        if not host:
            _knock(place)
        store = TCPStore(place.address, place.port, place.world, host, JOINING, wait_for_workers=False)
    except (OSError, RuntimeError) as error:
        raise ApartError(
            f"process {place.rank} of {place.world} cannot {'open' if host else 'reach'} {place.address}:{place.port}, where "
            f"they meet ({str(error).splitlines()[0][:60]}); start all of them, with a free port that each machine can reach"
        ) from None
    return PrefixStore(f"rlrecipes/{place.attempt}", store)


def _knock(place: Standing) -> None:
    """Waits until somebody opens the store: within the library, a wait would hear no signal.

    Raises:
        OSError: nobody does, within `JOINING`.
    """
    until = time.monotonic() + JOINING.total_seconds()
    while True:
        try:
            socket.create_connection((place.address, place.port), timeout=2).close()
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.2)
        else:
            return


def wait_for_all(store: Any, place: Standing) -> None:
    """Waits until all processes have come; the first says so if that takes long.

    Raises:
        ApartError: they do not, within `JOINING`.
    """
    began, said = time.monotonic(), False
    try:
        store.add(HERE, 1)
        while (count := store.add(HERE, 0)) < place.world:
            waited = time.monotonic() - began
            if waited > JOINING.total_seconds():
                raise ApartError(
                    f"of {place.world} processes {count} came within {JOINING.seconds} s; start all of them, with the same "
                    "command, or unset WORLD_SIZE"
                )
            if waited > PATIENT and not said and place.rank == 0:
                said = True
                text = (
                    f"  {count} of WORLD_SIZE={place.world} processes are here; waiting for the others (Ctrl-C stops)"
                )
                print(text, file=sys.stderr, flush=True)
            time.sleep(0.05)
    except RuntimeError as error:
        raise ApartError(
            f"process {place.rank} of {place.world} lost {place.address}:{place.port}, where they meet "
            f"({str(error).splitlines()[0][:60]}); start all of them again"
        ) from None


class Alive(threading.Thread):
    """Counts for this process, watches others, and ends this process where one of them has ended."""

    def __init__(self, place: Standing) -> None:
        super().__init__(name="alive", daemon=True)
        self.place = place
        self.others: list[tuple[int, str, int]] = []
        """Rank, machine and number of each other process, once they are known."""
        self.store = meeting(place, host=False)
        self.store.set_timeout(timedelta(seconds=ANSWER))
        self.watched = [rank for rank in (range(1, place.world) if place.rank == 0 else [0]) if rank != place.rank]
        self.patience = SILENCE
        self.resting = False
        """Whether nothing is shared for now, so that the others may end as they like."""
        self.ended: dict[str, Any] | None = None
        """The note of the process that ended first."""
        self._lock = threading.Lock()
        self.noticed = False
        """Whether this process is on its way out."""
        self.looks = 0
        """How often this thread has looked around."""

    def run(self) -> None:
        seen: dict[int, tuple[int, float]] = {}
        """Each one's count, and when it changed, in seconds of this thread's own work."""
        now = answered = 0.0
        while self.ended is None:
            began = time.monotonic()
            try:
                self.store.add(f"alive/{self.place.rank}", 1)
                counts = {rank: self.store.add(f"alive/{rank}", 0) for rank in self.watched}
                note = json.loads(self.store.get(NOTE)) if self.store.check([NOTE]) else None
                answered = now
            except Exception:  # the store's process is gone or stopped, and with it the first or the launcher
                counts, note = {}, None
                if now - answered > self.patience:
                    note = {"rank": 0, "kind": LOST, "text": ""}
            self.looks += 1
            for rank, count in counts.items():
                if rank not in seen or seen[rank][0] != count or self.resting:
                    seen[rank] = (count, now)
                elif now - seen[rank][1] > self.patience and note is None:
                    note = {"rank": rank, "kind": LOST, "text": ""}
            if not self.resting and (note := note or self._gone_here()) is not None:
                self._end(note)
            asked = time.monotonic()
            time.sleep(BEAT)
            now += min(asked - began, 1.2 * ANSWER) + min(time.monotonic() - asked, 2 * BEAT)

    def tell(self, kind: str, text: str) -> None:
        """Leaves the note of why this process ends, and gives the others a few seconds to hear it."""
        self.noticed = True
        with self._lock:
            if self.ended is not None:
                return
            self.ended = {"rank": self.place.rank, "kind": kind, "text": text}
        with contextlib.suppress(Exception):
            self.store.compare_set(NOTE, "", json.dumps(self.ended))
            until = time.monotonic() + 5
            while time.monotonic() < until and self.store.add(HEARD, 0) < self.place.world - 1:
                time.sleep(0.1)

    def why(self) -> OthersEndedError:
        """Why this process cannot go on, once the connection to another one broke; it waits until that is known."""
        self.patience, self.noticed = SUSPECTED, True
        until = time.monotonic() + SILENCE
        time.sleep(2 * BEAT)  # who ended by an error has left a note
        self.look()
        while self.ended is None and time.monotonic() < until:
            time.sleep(0.05)
        return self.sentence()

    def unanswered(self) -> OthersEndedError:
        """What to raise where the store's process is stopped: asked for anything, it would never answer."""
        self.ended = self.ended or {"rank": 0, "kind": LOST, "text": ""}
        return self.sentence()

    def look(self) -> None:
        """Notes which process of this machine is gone; those of others are known to be by their silence alone."""
        if self.ended is None and (note := self._gone_here()) is not None:
            self.noticed = True
            self._note(note)

    def _gone_here(self) -> dict[str, Any] | None:
        """The note on a process of this machine that is gone; None where all run."""
        for rank, machine, number in self.others:
            if machine == here() and not _runs(number):
                return {"rank": rank, "kind": LOST, "text": ""}
        return None

    def sentence(self) -> OthersEndedError:
        """What to raise for the note that was left; without one, nobody knows."""
        self.noticed = True
        note = self.ended or {"rank": -1, "kind": LOST, "text": ""}
        rank, kind, world = note["rank"], note["kind"], self.place.world
        who = f"process {rank} of {world} (counted from 0)" if rank >= 0 else f"one of {world} processes"
        sentences = {
            ERROR: note["text"],
            INTERRUPTED: "another process was interrupted, and the others ended with it; give the same command again",
            BROKE: f"{who} broke down ({note['text']}), and the others ended with it; see what it wrote above, and give the "
            "same command again",
            LOST: f"{who} gave no sign of life and the others ended with it; look whether it was killed, stopped or cut off, "
            "for want of memory perhaps, and give the same command again, with as many processes or others",
        }
        teller = 1 if rank == 0 and kind == LOST else 0
        return OthersEndedError(sentences[kind], kind == INTERRUPTED, self.place.rank == teller)

    def _end(self, note: dict[str, Any]) -> None:
        """Has this process end: it may notice by itself, is then interrupted, and at last ended from here."""
        if not self._note(note):
            return
        time.sleep(3)
        if not self.noticed:
            _thread.interrupt_main()
        until = time.monotonic() + GRACE
        while time.monotonic() < until:
            time.sleep(0.2)
        error = self.sentence()
        with contextlib.suppress(Exception):
            if error.said_here:
                print(f"error: {error}", file=sys.stderr, flush=True)
        os._exit(75 if error.interrupted else 2)

    def _note(self, note: dict[str, Any]) -> bool:
        """Takes a note for the one that counts, unless there is one, and lets the others have it."""
        with self._lock:
            if self.ended is not None:
                return False
            self.ended = note
        with contextlib.suppress(Exception):
            self.store.compare_set(NOTE, "", json.dumps(note))
            self.store.add(HEARD, 1)
        return True


def here() -> str:
    """Where the numbers of processes are known by which this one knows its own: a machine, or a container on it."""
    with contextlib.suppress(OSError):
        return f"{platform.node()} {os.readlink('/proc/self/ns/pid')}"
    return f"{platform.node()} {os.getpid()}"  # a system without namespaces: nobody else is here


def _runs(number: int) -> bool:
    """Whether a process of this machine is there and has not ended; one that was not yet waited for has."""
    try:
        os.kill(number, 0)
        status = Path(f"/proc/{number}/stat").read_text()
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's, or there is no such file here
        return True
    return status.rpartition(")")[2].split()[0] != "Z"
