"""What the person at the console sees: plain lines and progress bars.

A terminal that cannot write a character gets its number, `\\xb7`. What would move the cursor or turn the text around is
shown so too: data, names and errors are somebody's text.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from tqdm import tqdm

from rlrecipes.run.processes import is_first

_ACTS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, line separators, overrides of the direction, and bytes that are no text."""


def shown(text: str) -> str:
    r"""The text with every character that acts on a terminal as its number.

    >>> shown("red \x1b[31m")
    'red \\x1b[31m'
    """
    return _ACTS.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def say(text: str) -> None:
    """Writes a line to standard output, above any progress bar; of several processes, the first does."""
    if not is_first():
        return
    tqdm.write(shown(text), file=sys.stdout)
    sys.stdout.flush()


def open_streams() -> None:
    """Lets standard output and error take any text, and opens those that are closed onto nothing; at a command's start."""
    for descriptor in range(3):  # a file opened later must not become one of the three
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stdout, sys.stderr = sys.stdout or os.fdopen(1, "w"), sys.stderr or os.fdopen(2, "w")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextlib.contextmanager
def unbroken() -> Iterator[None]:
    """Inside the block an output that breaks falls silent: a pipe whose reader is gone, a closed terminal, a full disk."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _Unbroken(sys.stdout), _Unbroken(sys.stderr)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


class _Unbroken:
    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            self._act(self._stream.write, text)
        except UnicodeEncodeError as error:
            self._act(self._stream.write, text.encode(error.encoding, "backslashreplace").decode(error.encoding))
        return len(text)

    def flush(self) -> None:
        self._act(self._stream.flush)

    def _act(self, act: Callable[..., Any], *arguments: str) -> None:
        try:
            act(*arguments)
        except OSError:
            with contextlib.suppress(OSError):  # the stream keeps what it could not write, and tries again at its end
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def bar(name: str, total: int, done: int = 0) -> tqdm[Any]:
    """A progress bar with the time left; where standard error is no terminal, a line every 20 seconds."""
    often, mute = 0.2 if sys.stderr.isatty() else 20, not is_first()
    return tqdm(total=total, initial=done, desc=f"  {name:<9}", mininterval=often, dynamic_ncols=True, disable=mute)


def end_bars() -> None:
    """Closes the bars that an error left open, so that the next text starts on a line of its own."""
    for open_bar in list(tqdm._instances):
        open_bar.close()


def quiet() -> None:
    """Keeps third-party libraries from drowning a run's console output; errors still show.

    Call it before their import, since some warn during it.
    """
    warnings.filterwarnings("ignore")
    # On CPUs with AVX512-BF16, bitsandbytes has this library fetch a kernel from the hub while it is imported, for layers
    # that we keep it from using (`model.loading`). None is Python's own mark of a module that cannot be imported.
    sys.modules.setdefault("kernels", None)  # type: ignore[arg-type]
    for name in ("accelerate", "bitsandbytes", "peft", "torch", "trl", "wandb", "huggingface_hub", "httpx"):
        logging.getLogger(name).setLevel(logging.ERROR)
    import datasets
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.logging.set_verbosity_error()
    datasets.disable_progress_bars()
