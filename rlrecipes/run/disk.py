"""What a full, broken or read-only disk is told as, wherever it shows.

    error: runs/tiny/translation/.sft/log.jsonl: no space left on device; free space and give the same command again

Python and the libraries' own code in Rust and C++ each raise their own errors over it; they all quote the system's words.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import traceback
from collections.abc import Iterator
from pathlib import Path

from rlrecipes.errors import errors_told

ADVICE = {
    errno.ENOSPC: "free space and {again}",
    errno.EDQUOT: "free space and {again}",
    errno.EFBIG: "raise the limit of a file's size (`ulimit -f`) and {again}",
    errno.EIO: "check the disk, and {again}",
    errno.EROFS: "make it writable or work in another folder, and {again}",
    errno.EACCES: "set its permissions and {again}",
    errno.EPERM: "set its permissions and {again}",
    errno.EMFILE: "raise the limit of open files (`ulimit -n`) and {again}",
    errno.ENFILE: "close other programs and {again}",
    errno.ESTALE: "mount its file system anew and {again}",
    errno.ENAMETOOLONG: "give the run or its folder a shorter name",
    errno.ENOTDIR: "move away the file that stands in a folder's place and {again}",
    errno.EISDIR: "move away the folder that stands in a file's place and {again}",
    errno.ELOOP: "mend the link and {again}",
}
"""What to do about each error of the system that a person can mend."""
_NO_TEMPORARY = re.compile(r"No usable temporary directory found in \[(.*)\]")
"""What `tempfile` says where it can write nowhere; its number is that of a file that is not there."""
_NAMES = ("filename", "file_path", "save_directory")
"""What the libraries call the file that they write."""
_QUOTED = re.compile(r"os error (\d+)|" + "|".join(f"({os.strerror(number)})" for number in ADVICE), re.IGNORECASE)


@contextlib.contextmanager
def disk_errors_told(again: str = "give the same command again") -> Iterator[None]:
    """Turns what the disk did, by whatever error it shows, into one sentence with the file's name where that is known.

    Raises:
        UserError: for such an error.
    """
    with errors_told(lambda error: _sentence(error, again)):
        yield


def _sentence(error: BaseException, again: str) -> str | None:
    """The sentence for an error, or for the one that it was raised over; None where the disk is not to blame."""
    seen: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in seen:
        seen.append(cause)
        if match := _NO_TEMPORARY.search(str(cause)):
            places = match[1].replace("'", "")
            advice = f"free space in one of them, or name another folder as TMPDIR, and {again}"
            return f"no temporary file can be written in any of {places}; {advice}"
        if (number := _number(cause)) is not None:
            place, what = next((name for each in seen if (name := _place(each))), None), os.strerror(number)
            return f"{f'{place}: ' if place else ''}{what[:1].lower()}{what[1:]}; {ADVICE[number].format(again=again)}"
        cause = cause.__cause__ or cause.__context__
    return None


def _place(error: BaseException) -> str | None:
    """The file or folder that an error is about; where it does not say, the one that the innermost code had in hand."""
    if isinstance(error, OSError) and isinstance(error.filename, str | bytes | os.PathLike):
        return os.fsdecode(error.filename)
    frames = [frame.f_locals for frame, _ in traceback.walk_tb(error.__traceback__)]
    for values in reversed(frames):
        for name, value in values.items():
            if isinstance(value, Path) or (name in _NAMES and isinstance(value, str)):
                return str(value)
    return None


def _number(error: BaseException) -> int | None:
    """The system's number for what happened, as the error has it or quotes it; None for any other."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno if error.errno in ADVICE else None
    match = _QUOTED.search(str(error))
    if match is None:
        return None
    number = int(match[1]) if match[1] else list(ADVICE)[(match.lastindex or 2) - 2]
    return number if number in ADVICE else None
