"""No terminal stops a run, and no text acts on one."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT

from rlrecipes.run.console import shown

RUN = r"""
import os, sys
from rlrecipes.run.console import bar, open_streams, say, unbroken
if sys.argv[1:]:
    open_streams()
with unbroken():
    with bar("sft", 400) as progress:
        progress.mininterval = 0
        for _ in range(400):
            say("translation \xb7 sft \u2192 \u4e2d" * 20)
            progress.update(1)
    os.close(os.open("finished", os.O_CREAT))
"""
STREAMS = {
    "a pipe without a reader": "{} | true",
    "standard error into it too": "{} 2>&1 | true",
    "closed output": "{} >&-",
    "closed error": "{} 2>&-",
    "both closed": "{} >&- 2>&-",
    "all closed": "{} <&- >&- 2>&-",
    "a full disk": "{} >/dev/full 2>/dev/full",
}
ENCODINGS = [
    {"PYTHONIOENCODING": "ascii"},
    {"PYTHONIOENCODING": "latin-1"},
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    {"LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
]


def shell(line: str, folder, *arguments: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    words = "".join(f" '{argument}'" for argument in arguments)
    return subprocess.run(
        ["bash", "-c", line.format(f"'{sys.executable}'{words}")],
        cwd=folder,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )


@pytest.mark.parametrize("line", STREAMS.values(), ids=STREAMS)
def test_a_run_goes_on_where_nobody_reads_it(tmp_path, line):
    shell(line, tmp_path, "-c", RUN, "as a command")
    assert (tmp_path / "finished").exists()


@pytest.mark.parametrize("environment", ENCODINGS, ids=lambda pairs: " ".join(pairs))
@pytest.mark.parametrize("arguments", [(), ("as a command",)], ids=["from Python", "as a command"])
def test_a_run_goes_on_where_the_terminal_lacks_its_characters(tmp_path, environment, arguments):
    given = shell("{}", tmp_path, "-c", RUN, *arguments, **environment)
    assert (tmp_path / "finished").exists(), given.stderr
    assert b"\\u2192" in given.stdout


@pytest.mark.parametrize("line", STREAMS.values(), ids=STREAMS)
@pytest.mark.parametrize("arguments", [("list",), ("--help",), ("sft", "\x1b[31m\xe9"), ("show", "translation")])
def test_looking_never_ends_in_a_traceback(tmp_path, line, arguments):
    given = shell(line, tmp_path, "-m", "rlrecipes", *arguments, PYTHONIOENCODING="ascii")
    assert b"Traceback" not in given.stderr + given.stdout
    assert b"\x1b" not in given.stderr + given.stdout


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\x1b[2J\x07", "\\x1b[2J\\x07"),
        ("a\rb\x08", "a\\rb\\x08"),
        ("\x9b31m\x7f", "\\x9b31m\\x7f"),
        ("\u202etxt.exe\u2066", "\\u202etxt.exe\\u2066"),
        ("a\u2028b", "a\\u2028b"),
        ("\udc80", "\\udc80"),
        ("two\nlines\tand tabs", "two\nlines\tand tabs"),
        ("Grüße, 中文, हिन्दी, 👩\u200d👧, שלום", "Grüße, 中文, हिन्दी, 👩\u200d👧, שלום"),
    ],
)
def test_what_acts_on_a_terminal_is_shown_as_its_number(text, expected):
    assert shown(text) == expected
