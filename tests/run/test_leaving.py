"""A process ends with its status, whatever threads a recipe's code has started."""

import subprocess
import sys
import time

from conftest import ROOT


def left(code: str) -> tuple[int, str, str, float]:
    """Status, standard output and error, and the seconds, of a process that leaves by a command of this code."""
    begun = time.monotonic()
    start = "import threading, time\nfrom rlrecipes.run import leaving\nleaving.PATIENCE = 1\n"
    whole = f"{start}{code}\nleaving.leave(command)"
    done = subprocess.run([sys.executable, "-c", whole], cwd=ROOT, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout, done.stderr, time.monotonic() - begun


SLEEPS = "def command():\n print('done')\n threading.Thread(target=time.sleep, args=({},), name='poll').start()\n {}"


def test_a_thread_that_never_ends_is_named_and_keeps_neither_the_process_nor_its_output_nor_its_status():
    status, out, err, seconds = left(SLEEPS.format(50, "return 75"))
    assert (status, out) == (75, "done\n")
    assert err == (
        "the threads 'poll' of a recipe are still at work and end here; start such a thread with daemon=True, or end it\n"
    )
    assert seconds < 30


def test_behind_a_traceback_too():
    status, _, err, _ = left(SLEEPS.format(50, "1 / 0"))
    assert status == 1
    assert "ZeroDivisionError: division by zero\nthe threads 'poll'" in err


def test_a_thread_that_ends_in_time_is_waited_for_in_silence():
    code = "def slow():\n time.sleep(0.3)\n print('slow')\ndef command():\n threading.Thread(target=slow).start()\n return 2"
    assert left(code)[:3] == (2, "slow\n", "")


def test_an_idle_executor_ends_at_once():
    code = (
        "from concurrent.futures import ThreadPoolExecutor\npool = ThreadPoolExecutor(4)\n"
        "def command():\n return pool.submit(int, 3).result()"
    )
    assert left(code)[:3] == (3, "", "")
