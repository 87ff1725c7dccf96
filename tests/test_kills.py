"""Kills at random moments change nothing about what comes out; `make kills` does it longer."""

import subprocess
import sys

from conftest import ROOT


def test_the_road_under_kills_ends_with_the_same_bytes():
    # A process of its own: a child that is forked after a backward pass cannot make one.
    command = [sys.executable, str(ROOT / "tests" / "kills.py"), "--kills", "7", "--algorithms", "ppo,grpo"]
    done = subprocess.run(command, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "every byte is the same" in done.stdout
    assert "DIFFERENT" not in done.stdout
    assert done.stdout.count("SIGKILL") >= 4
