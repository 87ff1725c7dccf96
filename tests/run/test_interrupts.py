"""The first signal lets a loop finish its step; elsewhere, and the second time, it acts at once."""

import contextlib
import os
import signal
import subprocess
import sys

import pytest
from conftest import ROOT

from rlrecipes.run.interrupts import Interrupted, finishing_first, handled, stop_requested

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.fixture(autouse=True)
def no_nohup():
    """The tests may run under it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def send(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", SIGNALS)
def test_outside_of_a_loop_a_signal_acts_at_once(number):
    with handled(), pytest.raises(KeyboardInterrupt):
        send(number)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_loop_sees_a_signal_and_goes_on_until_it_raises_itself(number, capfd):
    def loop():
        with finishing_first():
            assert not stop_requested()
            send(number)
            assert stop_requested()
            raise Interrupted("saved")

    with handled(), pytest.raises(Interrupted, match="saved"):
        loop()
    assert "finishing this step, then saving" in capfd.readouterr().err


def test_a_loop_that_was_at_its_end_ends_the_command_after_it():
    steps = []

    def loop():
        with finishing_first():
            send(signal.SIGINT)
            steps.append("the last one")

    with handled(), pytest.raises(Interrupted):
        loop()
    assert steps == ["the last one"]


@pytest.mark.parametrize("number", SIGNALS[:2])
def test_the_second_signal_acts_at_once(number):
    def loop():
        with finishing_first():
            send(signal.SIGINT)
            send(number)
            pytest.fail("the loop went on")

    with handled(), pytest.raises(KeyboardInterrupt) as raised:
        loop()
    assert not isinstance(raised.value, Interrupted)


def test_a_terminal_that_closes_sends_its_signal_twice_and_the_step_is_finished_all_the_same():
    steps = []

    def loop():
        with finishing_first():
            send(signal.SIGHUP)
            send(signal.SIGHUP)
            steps.append("finished")

    with handled(), pytest.raises(Interrupted):
        loop()
    assert steps == ["finished"]


def test_under_nohup_a_terminal_that_closes_is_nothing():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with handled(), finishing_first():
        send(signal.SIGHUP)
        assert not stop_requested()


def test_a_step_is_finished_where_nobody_reads_that_it_is(tmp_path):
    code = """
import os, signal, sys
from rlrecipes import __main__ as command
from rlrecipes.run.interrupts import Interrupted, finishing_first

def act(arguments):
    with finishing_first():
        os.kill(os.getpid(), signal.SIGINT)
        open("finished", "w").close()
        raise Interrupted("saved up to step 1")

command._list = act
sys.exit(command.main(["list"]))
"""
    read, write = os.pipe()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", code], stderr=write, cwd=tmp_path, env=environment)
    os.close(write)
    os.close(read)  # as `2>&1 | tee log`, whose reader Ctrl-C ends too
    assert process.wait() == 75
    assert (tmp_path / "finished").exists()


def test_a_signal_that_a_library_swallowed_acts_before_the_next_loop():
    with handled():
        with contextlib.suppress(KeyboardInterrupt):
            send(signal.SIGTERM)
        with pytest.raises(Interrupted), finishing_first():
            pytest.fail("the loop began")


def test_afterwards_signals_are_as_they_were_and_nothing_is_remembered():
    before = [signal.getsignal(number) for number in SIGNALS]
    with handled(), pytest.raises(KeyboardInterrupt):
        send(signal.SIGTERM)
    assert [signal.getsignal(number) for number in SIGNALS] == before
    with handled():
        assert not stop_requested()


@pytest.mark.parametrize(
    "code",
    [
        "sum(range(10**11))",  # never comes back to the interpreter, which alone runs handlers of signals
        "while True:\n        try: time.sleep(1)\n        except: pass",
    ],
)
def test_code_that_nothing_interrupts_ends_its_process_and_is_named(tmp_path, code):
    script = tmp_path / "mine.py"
    script.write_text(
        f"import time\nfrom rlrecipes.run.interrupts import time_limit\nwith time_limit(0.3):\n    {code}\n"
    )
    ended = subprocess.run(
        [sys.executable, script],
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert ended.returncode == 1
    assert "Timeout" in ended.stderr
    assert "mine.py" in ended.stderr
