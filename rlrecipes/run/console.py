"""What the person at the console sees: plain lines and progress bars."""

from __future__ import annotations

import logging
import sys
import warnings
from typing import Any

from tqdm import tqdm


def say(text: str) -> None:
    """Writes a line to standard output, above any progress bar."""
    tqdm.write(text, file=sys.stdout)
    sys.stdout.flush()


def bar(name: str, total: int, done: int = 0) -> tqdm[Any]:
    """A progress bar with the time left; where standard error is no terminal, a line every 20 seconds."""
    often = 0.2 if sys.stderr.isatty() else 20
    return tqdm(total=total, initial=done, desc=f"  {name:<9}", mininterval=often, dynamic_ncols=True)


def end_bars() -> None:
    """Closes the bars that an error left open, so that the next text starts on a line of its own."""
    for open_bar in list(tqdm._instances):
        open_bar.close()


def quiet() -> None:
    """Keeps third-party libraries from drowning a run's console output; errors still show.

    Call it before their import, since some warn during it.
    """
    warnings.filterwarnings("ignore")
    for name in ("accelerate", "bitsandbytes", "peft", "torch", "trl", "wandb", "huggingface_hub", "httpx"):
        logging.getLogger(name).setLevel(logging.ERROR)
    import datasets
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.logging.set_verbosity_error()
    datasets.disable_progress_bars()
