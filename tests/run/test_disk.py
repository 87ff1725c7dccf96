"""A full, broken or read-only disk is one sentence, whoever noticed it."""

import errno
import os
import resource
import subprocess
import sys

import pytest
from conftest import ROOT, SMALLEST, main

from rlrecipes.errors import UserError
from rlrecipes.pipeline import run_recipe
from rlrecipes.profile import load_profile
from rlrecipes.run.disk import disk_errors_told


def wrapped(outer, inner):
    outer.__cause__ = inner
    return outer


def followed(outer, inner):
    outer.__context__ = inner
    return outer


FULL = "no space left on device; free space and give the same command again"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "runs/a"), f"runs/a: {FULL}"),
        (OSError(errno.ENOSPC, "No space left on device", b"runs/a"), f"runs/a: {FULL}"),
        (OSError(errno.ENOSPC, "No space left on device"), FULL),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "a"), "a: disk quota exceeded; free space and give"),
        (OSError(errno.EIO, "Input/output error", "a"), "a: input/output error; check the disk"),
        (OSError(errno.EROFS, "Read-only file system", "a"), "a: read-only file system; make it writable or work in"),
        (PermissionError(errno.EACCES, "Permission denied", "a"), "a: permission denied; set its permissions"),
        (OSError(errno.EFBIG, "File too large", "a"), "a: file too large; raise the limit"),
        (OSError(errno.EMFILE, "Too many open files", "a"), "a: too many open files; raise the limit"),
        # Libraries in Rust, in C++, and those that quote another's error.
        (Exception("No space left on device (os error 28)"), FULL),
        (
            ValueError("Error while serializing: I/O error: Read-only file system (os error 30)"),
            "read-only file system; ",
        ),
        (RuntimeError("basic_ios::clear: No space left on device"), FULL),
        (wrapped(RuntimeError("cannot save"), OSError(errno.ENOSPC, "No space left on device", "a")), f"a: {FULL}"),
        (followed(KeyError("b"), OSError(errno.ENOSPC, "No space left on device", "a")), f"a: {FULL}"),
    ],
)
def test_what_the_disk_did_is_one_sentence_with_the_file_and_what_to_do(error, said):
    with pytest.raises(UserError) as caught, disk_errors_told():
        raise error
    assert str(caught.value).endswith(said) or said in str(caught.value)


@pytest.mark.parametrize("error", [ValueError("no"), BrokenPipeError(errno.EPIPE, "Broken pipe"), KeyError(28)])
def test_what_is_not_the_disks_stays_what_it_is(error):
    with pytest.raises(type(error)), disk_errors_told():
        raise error


def test_a_users_error_over_a_disk_error_keeps_its_words():
    with pytest.raises(UserError, match=r"^make room$"), disk_errors_told():
        raise UserError("make room") from OSError(errno.ENOSPC, "No space left on device", "a")


def test_where_the_error_names_no_file_the_one_in_hand_is_named(tmp_path):
    def write(path):
        with path.open("w"):
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(UserError, match=r"log\.jsonl: no space left"), disk_errors_told():
        write(tmp_path / "log.jsonl")


def full(path, target):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))


def test_a_full_disk_ends_a_stage_in_one_line_and_the_same_command_goes_on(home, monkeypatch, capsys):
    given = ["sft", "translation", "--run", "disk-full", "--data", "pairs.jsonl", *SMALLEST]
    with monkeypatch.context() as patch:
        patch.setattr("os.replace", full)
        assert main(given) == 2
        *_, last = capsys.readouterr().err.splitlines()
        assert last.startswith("error: runs/")
        assert last.endswith((f"begun.json: {FULL}", f"settings.toml: {FULL}")), "whichever is written first"
        profile = load_profile("tiny", list(SMALLEST))
        with pytest.raises(UserError, match="no space left on device"):
            run_recipe("translation", profile, "sft", data="pairs.jsonl", run="disk-full")
    assert main(given) == 0


def test_where_no_temporary_file_can_be_written_it_is_said_in_one_line(home):
    def without_room():
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))

    given = ["sft", "translation", "--run", "no-room", "--data", "pairs.jsonl", *SMALLEST]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(home)}
    command = [sys.executable, "-B", "-m", "rlrecipes", *given]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, preexec_fn=without_room)
    *_, last = done.stderr.splitlines()
    assert done.returncode == 2
    assert last.startswith(f"error: no temporary file can be written in any of {home}, /tmp")
    assert last.endswith("or name another folder as TMPDIR, and give the same command again")
    assert "Traceback" not in done.stderr
    assert not (home / "runs" / "no-room").exists()


def test_a_full_standard_output_is_told():
    with open("/dev/full", "w") as output:
        command = [sys.executable, "-m", "rlrecipes", "list"]
        done = subprocess.run(command, cwd=ROOT, stdout=output, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (2, f"error: {FULL}\n")


@pytest.mark.parametrize("given", [["list"], ["show", "nosuch"]])
def test_where_standard_error_is_on_the_full_disk_too_the_status_still_tells(given):
    with open("/dev/full", "w") as output:
        command = [sys.executable, "-m", "rlrecipes", *given]
        done = subprocess.run(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
    assert done.returncode == 2
