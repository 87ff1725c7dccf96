"""Kills the whole road at random moments until it is through, and compares what came out with an uninterrupted run.

    python tests/kills.py --kills 50 --seed 0
    python tests/kills.py --kills 10 --algorithms grpo
    python tests/kills.py --kills 5 --launch 'torchrun --nproc_per_node 2'

SIGKILL comes before the n-th change to a file under `runs/`, so that saving and closing are hit as well, or after a random
time; SIGTERM, which asks for a checkpoint first, after a random time. The libraries are imported once; each try is a forked
child. Exit status 0: every byte is the same.

With a launcher each try is a launch of its own, and one of its processes, any of them, is killed, stopped or asked to end.
"""

import argparse
import contextlib
import gc
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from conftest import ROOT, SMALLEST, import_all, last_of_each, sentences, write_rows

from rlrecipes.__main__ import INTERRUPTED
from rlrecipes.profile import ALGORITHMS, load_profile, named_algorithms

ROAD = tuple(
    last_of_each(
        (
            *("run", "translation", "--data", "pairs.jsonl", "--run", "road", *SMALLEST),
            *("base.max_steps=6", "sft.max_steps=9", "sft.logging_steps=2", "sft.gradient_accumulation_steps=2"),
            *(
                "reward.max_steps=14",
                "reward.logging_steps=3",
                "reward.per_device_train_batch_size=16",
                "reward.seeds=2",
            ),
            *("ppo.total_episodes=72", "ppo.kl_target=1", "ppo.kl_horizon=100", "ppo.learning_rate=0.01"),
            *("evaluate.batch_size=2", "checkpoint.seconds=0"),
        )
    )
)
"""More than one pass over every stage's data, accumulation, dropout and an adaptive KL: all that has to be carried over."""
AS_PPO = {
    **{"total_episodes": "72", "kl_target": "1", "kl_horizon": "100", "learning_rate": "0.01"},
    **{"per_device_train_batch_size": "8", "anyway": "true"},
    "max_steps": "14",  # of DPO and `distill`
    **{
        "dynamic_sampling": "true",
        "num_generations": "2",
        "temperature": "0.2",
    },  # so that some batches take several draws
}
"""What the road says of every other algorithm that has such a setting."""
CHANGES = {"os.link", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "shutil.rmtree"}
UNLIKE = {"finished", "seconds", "cpu_seconds", "peak_memory_mb", "resumed", "sha256"}
"""What `done.json` says about the machine's time and not about the result, with its own checksum, which is over that too."""

TOO_LONG = 1800
"""Seconds that a launch has to end in, by itself or once one of its processes was killed."""
TIMES = ("eps", "_runtime", "_per_second")
"""How the columns of a log end that tell of time; `eps`: episodes a second."""


def road_of(algorithms: Sequence[str]) -> tuple[str, ...]:
    """The road with these algorithms in PPO's place, on the same SFT and reward model."""
    tables = {name: getattr(load_profile("tiny"), name) for name in algorithms if name != "ppo"}
    settings = [
        f"{name}.{key}={AS_PPO[key]}" for name, table in tables.items() for key in AS_PPO if hasattr(table, key)
    ]
    idle = () if "ppo" in algorithms else ("ppo.",)
    kept = [word for word in ROAD if not word.startswith((*idle, "evaluate.policies=")) or "response_length" in word]
    policies = ",".join(("base", "sft", "best4", *algorithms))
    return (*kept, *settings, f"run.algorithms={','.join(algorithms)}", f"evaluate.policies={policies}")


class _Files:
    """Counts the changes to files under `runs/`, and kills this process before one of them."""

    changes = 0
    fatal: int | None = None
    watching = False

    def __call__(self, event: str, arguments: tuple[object, ...]) -> None:
        written = event == "open" and isinstance(arguments[1], str) and set("wax+") & set(arguments[1])
        # `shutil.rmtree` names what it removes by its folder's descriptor, and there is nothing else that it removes.
        by_descriptor = event in ("os.remove", "os.rmdir") and arguments[1] != -1
        if self.watching and (written or event in CHANGES) and ("runs" in str(arguments[0]) or by_descriptor):
            self.changes += 1
            if self.changes == self.fatal:
                os.kill(os.getpid(), signal.SIGKILL)


files = _Files()
sys.addaudithook(files)


@dataclass(frozen=True)
class Moment:
    """When a try is ended, and how."""

    change: int | None = None
    """Before this change to a file; by SIGKILL."""
    seconds: float | None = None
    """After so long; by `signal`."""
    signal: int = signal.SIGKILL


def forked(work: Callable[[], int], moment: Moment = Moment()) -> int:
    """Runs `work` in a child that is ended at `moment`; the exit status, negative for the signal that killed it."""
    child = os.fork()
    if child == 0:
        gc.freeze()  # as in faults.attempt
        files.changes, files.fatal, files.watching = 0, moment.change, True
        os._exit(work())
    if moment.seconds is not None:
        deadline = time.monotonic() + moment.seconds
        while time.monotonic() < deadline:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.002)
        os.kill(child, moment.signal)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def counted(work: Callable[[], int]) -> int:
    """Runs `work` in a child and returns how many files it changed.

    Raises:
        RuntimeError: it failed.
    """
    reader, writer = os.pipe()

    def counting() -> int:
        status = work()
        os.write(writer, str(files.changes).encode())
        return status

    if forked(counting) != 0:
        raise RuntimeError("it fails without any kill")
    return int(os.read(reader, 20))


def road(home: Path, words: Sequence[str] = ROAD) -> int:
    from rlrecipes.__main__ import main

    os.chdir(home)
    output = os.open("output.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    status = main(words)
    sys.stdout.flush()
    return status


def launched(
    home: Path, words: list[str], moment: Moment | None, draw: random.Random, road: Sequence[str] = ROAD
) -> int:
    """Runs the road by a launcher, one of whose processes gets a signal at `moment`; the launcher's exit status."""
    # PEFT writes a set of names to adapter_config.json, whose order Python draws anew for each process.
    own = {
        "PYTHONPATH": str(ROOT),
        "PYTHONHASHSEED": "0",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    environment = {**os.environ, **own}
    command = [*words, "-m", "--", "rlrecipes", *road]
    with (home / "output.log").open("a") as output:
        launcher = subprocess.Popen(command, cwd=home, env=environment, stdout=output, stderr=output)
        if moment is not None and moment.seconds is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return launcher.wait(moment.seconds)
            processes = workers(launcher.pid)
            if processes:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(draw.choice(processes), moment.signal)
        try:
            return launcher.wait(TOO_LONG)
        except subprocess.TimeoutExpired:
            launcher.terminate()  # which ends its processes
            raise


def workers(launcher: int) -> list[int]:
    """The processes that a launcher started, by their numbers."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    return sorted(map(int, children))


def survive_launched(folder: Path, kills: int, seed: int, words: list[str], road: Sequence[str] = ROAD) -> list[str]:
    """As `survive`, by a launcher; each road that comes through begins the next one."""
    draw, whole = random.Random(seed), made(folder, "whole")
    started = time.monotonic()
    assert launched(whole, words, None, draw, road) == 0, (whole / "output.log").read_text()[-3000:]
    seconds = time.monotonic() - started
    print(f"uninterrupted: {seconds:.1f} s", flush=True)
    expected, left, different = results(whole), kills, []
    while left and not different:
        home = made(folder, f"killed-{left}")
        while True:
            number = draw.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP])
            moment = Moment(seconds=draw.uniform(seconds / 4, seconds), signal=number) if left else None
            status = launched(home, words, moment, draw, road)
            if status == 0:
                break
            assert moment is not None, f"the last try failed: {(home / 'output.log').read_text()[-3000:]}"
            left -= 1
            finished = sorted(path.parent.name for path in (home / "runs").glob("road/*/*/done.json"))
            print(f"  {moment}; finished: {', '.join(finished) or 'nothing'}", flush=True)
        found = results(home)
        different = [name for name in sorted(expected.keys() | found.keys()) if expected.get(name) != found.get(name)]
        print(f"through after {kills - left} kills: {'every byte is the same' if not different else 'DIFFERENT'}")
    return different


def results(home: Path) -> dict[str, object]:
    """Every file under `runs/` by its path, without what tells of time; the report shows times and is left out."""
    found = {path.relative_to(home): path for path in (home / "runs").rglob("*") if path.is_file()}
    return {str(name): _content(path) for name, path in sorted(found.items()) if "report" not in name.parts}


def _content(path: Path) -> object:
    if path.name == "done.json":
        record = json.loads(path.read_text())
        files = {name: value for name, value in record["files"].items() if name != "log.jsonl"}  # which has times
        return {key: value for key, value in record.items() if key not in UNLIKE} | {"files": files}
    if path.name == "log.jsonl":
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        return [{key: value for key, value in row.items() if not key.endswith(TIMES)} for row in rows]
    return path.read_bytes()


def made(folder: Path, name: str) -> Path:
    home = folder / name
    home.mkdir()
    write_rows(home / "pairs.jsonl", sentences(300))
    return home


def load() -> None:
    """Imports all that the children shall inherit, and has the embedded base read the documents of one recipe."""
    import_all()
    import rlrecipes.model.embedded

    # Reading all recipes' documents takes longer than the road.
    rlrecipes.model.embedded.recipe_names = lambda: ["translation"]


def sample_by_hash(draw: random.Random, changes: int, seconds: float) -> Moment:
    """Within a third of a road, so that the kills spread over all of it."""
    part = draw.uniform(0, 1 / 3)
    change, after = Moment(change=1 + int(part * changes)), Moment(seconds=part * seconds)
    return draw.choice([change, change, after, Moment(seconds=part * seconds, signal=signal.SIGTERM)])


def survive(folder: Path, kills: int, seed: int, words: Sequence[str] = ROAD) -> list[str]:
    """Runs the road once whole, then again and again until all `kills` are used up; returns the files that differ."""
    load()
    whole = made(folder, "whole")
    started = time.monotonic()
    changes = counted(lambda: road(whole, words))
    seconds = time.monotonic() - started
    print(f"uninterrupted: {seconds:.1f} s, {changes} changes to files", flush=True)
    expected, draw, left, different = results(whole), random.Random(seed), kills, []
    while left and not different:
        killed = made(folder, f"killed-{left}")
        left -= pushed(killed, [sample_by_hash(draw, changes, seconds) for _ in range(left)], words)
        found = results(killed)
        different = [name for name in sorted(expected.keys() | found.keys()) if expected.get(name) != found.get(name)]
        print(f"through after {kills - left} kills: {'every byte is the same' if not different else 'DIFFERENT'}")
    return different


def pushed(home: Path, moments: list[Moment], words: Sequence[str] = ROAD) -> int:
    """Takes the road to its end, a try for each moment and the last one free; returns how many tries were killed."""
    for kill, moment in enumerate(moments):
        status = forked(lambda: road(home, words), moment)
        if status == 0:
            return kill
        expected = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: INTERRUPTED}[moment.signal]
        assert status == expected, f"{moment} ended with status {status}: {(home / 'output.log').read_text()[-3000:]}"
        finished = sorted(path.parent.name for path in (home / "runs").glob("road/*/*/done.json"))
        print(f"  {moment}; finished: {', '.join(finished) or 'nothing'}", flush=True)
    assert forked(lambda: road(home, words)) == 0, f"the last try failed: {(home / 'output.log').read_text()[-3000:]}"
    return len(moments)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--launch", default="", help="what starts several processes, as 'torchrun --nproc_per_node 2'")
    parser.add_argument("--algorithms", default=",".join(ALGORITHMS), help="those that train a policy on the road")
    arguments = parser.parse_args()
    whole_road = road_of(named_algorithms(arguments.algorithms))
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        if words := shlex.split(arguments.launch):
            different = survive_launched(Path(folder), arguments.kills, arguments.seed, words, whole_road)
        else:
            different = survive(Path(folder), arguments.kills, arguments.seed, whole_road)
    for name in different:
        print(f"different: {name}")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
