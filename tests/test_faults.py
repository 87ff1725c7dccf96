"""Files that nobody should train on and senseless command lines are told in one line; `make faults` tries more kinds."""

import os
import subprocess
import sys

from conftest import ROOT


def test_bad_files_and_bad_command_lines_are_all_told(tmp_path):
    # A process of its own: each try is a forked child, and a process that has used torch forks badly.
    command = [sys.executable, "-m", "faults", "--folder", str(tmp_path), "--kinds", "files,options"]
    places = {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "PATH": os.environ["PATH"]}
    done = subprocess.run(command, env=places, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith(("| files", "| options"))]
    assert [int(row[1]) >= 100 and row[5] == "0" for row in rows] == [True, True]
