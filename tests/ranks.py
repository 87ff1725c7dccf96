"""Command lines in one process or several, without a launcher: a helper imports the libraries once and forks the processes.

    {"home": "/tmp/…", "world": 2, "arguments": ["sft", "translation", …]} -> {"statuses": [0, 0], "outputs": ["…", ""]}

Each job is a line on its standard input, each outcome one on its standard output. A process that is forked before any
backward pass can make one, and has the libraries already. No launcher stands beside the processes and ends those that hang:
what ends them has to be our own.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Outcome:
    """How the processes of one job ended, and what they wrote."""

    statuses: list[int | None]
    """Negative for the signal that killed one; None: it was stopped, and killed at the end."""
    outputs: list[str]
    seconds: float


class Ranks:
    """The helper; one serves all tests of a session."""

    def __enter__(self) -> "Ranks":
        # The command line sets the last itself, before it imports torch, which the helper has done by then.
        own = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "TORCH_CPP_LOG_LEVEL": "ERROR"}
        environment = {**os.environ, **own}
        self._helper = subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "ranks.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )
        return self

    def __exit__(self, *error: object) -> None:
        assert self._helper.stdin is not None
        self._helper.stdin.close()
        self._helper.wait()

    def __call__(self, world: int, home: Path, *arguments: str, **others: object) -> Outcome:
        """Runs a command line in `world` processes; `signals` are (rank, signal, words on the console to wait for)."""
        assert self._helper.stdin is not None
        assert self._helper.stdout is not None
        job = {"home": str(home), "world": world, "arguments": arguments, **others}
        self._helper.stdin.write(json.dumps(job) + "\n")
        self._helper.stdin.flush()
        return Outcome(**json.loads(self._helper.stdout.readline()))


def environment_of(rank: int, world: int, port: int) -> dict[str, str]:
    """What torchrun would set."""
    values = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": world, "MASTER_PORT": port}
    return {"MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in values.items()}}


def forked(job: dict, rank: int, port: int, output: Path) -> int:
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        os.chdir(job["home"])
        written = os.open(output, os.O_WRONLY | os.O_CREAT)
        os.dup2(written, 1)
        os.dup2(written, 2)
        if job["world"] > 1:
            os.environ.update(environment_of(rank, job["world"], port))
        os.environ.update(job.get("environment", {}))
        if "code" in job:
            exec(job["code"], {"rank": rank})
        from conftest import main

        from rlrecipes.run.leaving import leave

        leave(lambda: main(job["arguments"]))
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def done(job: dict) -> dict:
    began = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder) / str(rank) for rank in range(job["world"])]
        children = [forked(job, rank, port, path) for rank, path in enumerate(outputs)]
        stopped = [
            signalled(children[rank], outputs[0], number, words) for rank, number, words in job.get("signals", ())
        ]
        statuses = [
            None if child in stopped else os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children
        ]
        for child in filter(None, stopped):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        texts = [path.read_text() for path in outputs]
    return {"statuses": statuses, "outputs": texts, "seconds": time.monotonic() - began}


def signalled(child: int, console: Path, number: int, words: str) -> int:
    """Sends a signal once the first process has written some words; returns a process that it stopped."""
    until = time.monotonic() + 60
    while words not in (console.read_text() if console.exists() else "") and time.monotonic() < until:
        time.sleep(0.01)
    os.kill(child, number)
    return child if number == signal.SIGSTOP else 0


def serve(jobs: Sequence[str]) -> None:
    from conftest import import_all

    import_all()
    answers = os.dup(1)
    os.dup2(2, 1)
    for line in jobs:
        os.write(answers, (json.dumps(done(json.loads(line))) + "\n").encode())


if __name__ == "__main__":
    serve(sys.stdin)
