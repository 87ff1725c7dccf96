"""Where a run's numbers go: a progress bar on the console, the stage's `log.jsonl`, and Weights & Biases.

    {"step": 10, "loss": 1.25, "learning_rate": 0.0009}

Tracking never stops training: where Weights & Biases cannot be reached, the run goes on offline.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import secrets
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm
from transformers import PrinterCallback, TrainerCallback

from rlrecipes.errors import first_line
from rlrecipes.profile import TrackSettings
from rlrecipes.run.console import bar, say
from rlrecipes.run.folder import CHECKPOINTS, Run, sync, write_json
from rlrecipes.run.stages import below
from rlrecipes.text import shortened

_BAR_VALUES = {
    "loss": "loss",
    "accuracy": "accuracy",
    "objective/scores": "reward",
    "objective/kl": "kl",
}
"""The logged values that a progress bar shows, and their short names there."""

LEAVES = ("adapter", "member-*", "value_adapter", "value_head.safetensors", "scale.json", "index.html")
"""What an artifact holds of a stage's files, where the stage left them."""
MODES = {
    **{"online": "online", "run": "online", "shared": "online"},
    **{"offline": "offline", "dryrun": "offline", "disabled": "off"},
}
"""What W&B's words for a mode come to."""
SECONDS = 5
"""The longest wait for W&B's server, once a run."""
UNREACHED, REMEMBERED = "unreached", 3600
"""The file that a run leaves where W&B did not answer, and for how many seconds the run then does not ask again."""


@dataclass
class _Process:
    unreached: bool = False
    """Whether W&B did not answer this process."""
    told: bool = False
    """Whether it was said that artifacts have no lineage offline."""


_process = _Process()


class Tracker:
    """Where a stage's curves, tables and summary go."""

    def __init__(self, folder: Path, wandb_run: Any | None = None, note: Path | None = None) -> None:
        self.folder = folder
        self.wandb_run = wandb_run
        self.note = note
        """The file that names the W&B run, and the rows that it has, for a process that goes on with the stage."""
        self._has: dict[str, int] = {}
        """How many rows of each file W&B had before this process; they are not sent again."""
        self._rows: Counter[str] = Counter()
        """How many rows of each file there are by now."""
        self._tables: dict[str, Any] = {}
        """W&B's table of each name, to which every step adds its rows."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Adds a row of numbers to the stage's curves."""
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        self._publish("log", [values], step)

    def table(self, name: str, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        """Adds a step's rows to a file, and to W&B's one table of that name."""
        with (self.folder / f"{name}.jsonl").open("a", encoding="utf-8") as file:
            file.writelines(json.dumps({"step": step, **row}, ensure_ascii=False) + "\n" for row in rows)
        self._publish(name, rows, step)

    def show(self, name: str, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        """Adds a step's rows to W&B's table alone, for rows that the stage's files have already."""
        self._publish(name, rows, step)

    def summary(self, values: Mapping[str, Any]) -> None:
        """The stage's final values, for W&B alone; `done.json` has them too."""
        self._send(lambda run: run.summary.update(dict(values)))

    def artifact(self, run: Run, stage: str, draft: Path) -> None:
        """Gives W&B what a stage leaves, and online which artifacts of the stages below it used; nothing where it is off."""
        if self.wandb_run is None or not (paths := [path for name in LEAVES for path in sorted(draft.glob(name))]):
            return
        import wandb

        name = f"{run.name}-{run.recipe}"
        if getattr(self.wandb_run, "offline", False):
            if not _process.told:
                say("  offline, Weights & Biases takes artifacts without what they stand on")
                _process.told = True
        else:
            for ground in below(stage):
                if any((run.stage(ground) / file).exists() for file in LEAVES):
                    self._use(f"{name}-{ground}:latest")

        def leave(wandb_run: Any) -> None:
            artifact = wandb.Artifact(f"{name}-{stage}", type="report" if stage == "report" else "model")
            for path in paths:
                if path.is_dir():
                    artifact.add_dir(str(path), name=path.name)
                else:
                    artifact.add_file(str(path), name=path.name)
            wandb_run.log_artifact(artifact)

        self._send(leave)

    def _use(self, name: str) -> None:
        try:
            assert self.wandb_run is not None
            self.wandb_run.use_artifact(name)
        except Exception as error:  # a stage that another run made, or that was not uploaded
            say(f"  Weights & Biases has no artifact {name} to stand on ({type(error).__name__})")

    @property
    def link(self) -> str | None:
        """The page of this stage's W&B run; None where it is offline or off."""
        online = self.wandb_run is not None and not getattr(self.wandb_run, "offline", False)
        return getattr(self.wandb_run, "url", None) if online else None

    def positions(self) -> dict[str, int]:
        """The length of each log in bytes, all of which is now forced to the disk."""
        logs = sorted(self.folder.glob("*.jsonl"))
        for path in logs:
            sync(path)
        return {path.name: path.stat().st_size for path in logs}

    def go_back(self, positions: Mapping[str, int]) -> None:
        """Cuts the logs back to `positions`, and sends W&B those of the rows that remain which it does not have.

        The rows that are cut off come again, the same, and are not sent twice either.
        """
        self._remember()
        for path in sorted(self.folder.glob("*.jsonl")):
            if path.name in positions:
                os.truncate(path, positions[path.name])
            else:
                path.unlink()
        rows = [
            (row.pop("step"), path.stem, row) for path in sorted(self.folder.glob("*.jsonl")) for row in _rows(path)
        ]
        # In the order of steps: W&B drops a row whose step is before its last.
        for (step, name), group in itertools.groupby(sorted(rows, key=lambda t: t[:2]), key=lambda t: t[:2]):
            self._publish(name, [row for _, _, row in group], step)

    def _publish(self, name: str, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        """Sends W&B the rows of one of our files at a step: rows of numbers from `log`, a table from any other."""
        self._rows[name] += len(rows)
        rows = rows[max(0, self._has.get(name, 0) - self._rows[name] + len(rows)) :]
        if self.wandb_run is None or not rows:
            return
        if name == "log":
            for row in rows:
                self._send(lambda run, row=row: run.log(dict(row), step=step))
            return
        import wandb

        if name not in self._tables:
            self._tables[name] = wandb.Table(columns=["step", *rows[0]], log_mode="INCREMENTAL")
        table = self._tables[name]

        def add(run: Any) -> None:
            for row in rows:
                table.add_data(step, *(row.get(column) for column in table.columns[1:]))
            run.log({name: table}, step=step)

        self._send(add)

    def _remember(self) -> None:
        """Notes which rows the W&B run has that this process goes on with; a table of an offline segment begins anew."""
        self._rows.clear()
        if self.note is None or self.wandb_run is None or not (noted := _noted(self.note)).get("goes_on"):
            return
        has = Counter(noted["rows"]) | Counter(
            {p.stem: p.read_bytes().count(b"\n") for p in self.folder.glob("*.jsonl")}
        )
        write_json(self.note, {**noted, "rows": has})
        self._has = {name: count for name, count in has.items() if name == "log" or noted["mode"] == "online"}

    def _send(self, send: Any) -> None:
        if self.wandb_run is not None:
            try:
                send(self.wandb_run)
            except Exception as error:  # tracking must never stop training
                say(f"  Weights & Biases stopped ({type(error).__name__}: {error}); training goes on without it")
                self.wandb_run = None
                if self.note is not None:  # it lacks rows from here on: a process that goes on begins another
                    self.note.unlink(missing_ok=True)


@contextlib.contextmanager
def tracked(
    run: Run, settings: TrackSettings, stage: str, folder: Path, config: Mapping[str, Any]
) -> Iterator[Tracker]:
    """A tracker for one stage: one W&B run in the group of its rlrecipes run and recipe.

    A stage that goes on from a checkpoint goes on with its W&B run: online the same one, offline another segment of it.
    """
    note = run.folder / "wandb" / f"{stage}.json"
    if not any((folder / CHECKPOINTS).glob("step-*")):
        note.unlink(missing_ok=True)
    tracker = Tracker(folder, _start_wandb(run, settings, stage, config, note), note)
    failed = True
    try:
        yield tracker
        failed = False
    finally:
        if tracker.wandb_run is not None:
            with contextlib.suppress(Exception):
                tracker.wandb_run.finish(exit_code=int(failed))


def _noted(note: Path) -> dict[str, Any]:
    """What a note holds; nothing where there is none that can be read."""
    try:
        return dict(json.loads(note.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def _rows(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def progress(name: str, tracker: Tracker | None = None, prefix: str = "", start: int = 0) -> TrainerCallback:
    """The callback that draws a trainer's progress bar and hands what it logs to the tracker.

    Of a stage that trains several models in turn, each has a `prefix` before its names and `start`, the steps before it.
    """
    return _Progress(name, tracker, prefix, start)


def remove_printer(trainer: Any) -> None:
    """Stops a trainer without a bar of its own from printing its logs as dictionaries; our bar shows them."""
    trainer.remove_callback(PrinterCallback)


class _Progress(TrainerCallback):
    def __init__(self, name: str, tracker: Tracker | None, prefix: str, start: int) -> None:
        self.name, self.tracker, self.prefix, self.start = name, tracker, prefix, start
        self.bar: tqdm[Any] | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar = bar(self.name, state.max_steps, done=state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.bar is not None:
            self.bar.update(1)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        numbers = {key: value for key, value in (logs or {}).items() if isinstance(value, int | float)}
        if self.bar is not None:
            values = {short: numbers[key] for key, short in _BAR_VALUES.items() if key in numbers}
            self.bar.set_postfix({key: f"{value:.2f}" for key, value in values.items()}, refresh=False)
        if self.tracker is not None and "train_runtime" not in numbers:
            named = {f"{self.prefix}{key}": value for key, value in numbers.items()}
            self.tracker.log(named, self.start + state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.bar is not None:
            self.bar.close()


def sync_command(run: Run) -> str | None:
    """The command that uploads a recipe's offline W&B runs; None where there are none."""
    offline = sorted((run.folder / "wandb").glob("offline-run-*"))
    python = os.path.relpath(sys.executable)
    return f"{python} -m wandb sync {run.folder}/wandb/offline-run-*" if offline else None


def _start_wandb(run: Run, settings: TrackSettings, stage: str, config: Mapping[str, Any], note: Path) -> Any | None:
    """A stage's W&B run; None where tracking is off or W&B cannot start. The WANDB_ variables count where we set nothing."""
    mode = _mode(settings)
    # Answers and a report train nothing and measure nothing.
    # A trial of a sweep is one W&B run, named by the agent, and its measure is the evaluation's.
    trial = "WANDB_SWEEP_ID" in os.environ
    silent = stage == "answers" or (stage == "report" and not settings.artifacts)
    if mode == "off" or silent or (trial and stage != "evaluate"):
        return None
    import wandb

    folder = run.folder / "wandb"
    folder.mkdir(parents=True, exist_ok=True)
    if mode == "online" and not _logged_in():  # W&B would ask in the terminal, and wait
        if settings.wandb == "online":
            say("  not logged in to Weights & Biases, so tracked offline; log in with `.venv/bin/wandb login`")
        mode = "offline"
    if mode == "online" and _failed_lately(folder):
        mode = "offline"
    attempts: tuple[Literal["online", "offline"], ...] = ("online", "offline") if mode == "online" else ("offline",)
    for attempt in attempts:
        noted = _noted(note)
        goes_on = noted.get("mode") == attempt
        # Not WANDB_RUN_ID, which would make one run of all stages, each over the one before.
        name = noted["id"] if goes_on else secrets.token_hex(4)
        if trial:
            name = os.environ.get("WANDB_RUN_ID") or name
        try:
            started = wandb.init(
                project=settings.project or os.environ.get("WANDB_PROJECT") or "rlrecipes",
                group=os.environ.get("WANDB_RUN_GROUP") or f"{run.name}-{run.recipe}",
                job_type=stage,
                name=f"{run.name}-{run.recipe}-{stage}",
                id=name,
                resume="allow" if goes_on or trial else "never",
                dir=str(run.folder),
                config=dict(config),
                mode=attempt,
                reinit="finish_previous",
                settings=wandb.Settings(silent=True, console="off", init_timeout=SECONDS),
            )
            goes_on = goes_on and (attempt == "offline" or bool(started.resumed))  # the server may have lost it
            rows = noted["rows"] if goes_on else {}
            write_json(note, {"id": name, "mode": attempt, "goes_on": goes_on, "rows": rows})
            return started
        except Exception as error:  # tracking must never stop training
            say(f"  Weights & Biases cannot start {attempt} ({type(error).__name__}: {first_line(error)})")
            if attempt == "online":
                _remember_failure(folder)
    return None


def _mode(settings: TrackSettings) -> str:
    """`online`, `offline` or `off`: the profile's word; under `auto` the environment's, then that of W&B's own settings, and
    online where neither has one."""
    if settings.wandb != "auto":
        return settings.wandb
    if os.environ.get("WANDB_DISABLED", "").lower() in ("true", "1", "yes", "on"):
        return "off"
    name = (os.environ.get("WANDB_MODE") or _kept_mode() or "online").lower()
    if name not in MODES and "WANDB_MODE" in os.environ:
        say(f"  WANDB_MODE={shortened(name, 40)} is none of online, offline and disabled, so tracked offline")
        os.environ["WANDB_MODE"] = "offline"  # W&B reads it too, and would start no run at all
    return MODES.get(name, "offline")


def _kept_mode() -> str | None:
    """What `wandb offline` or `wandb disabled` has left in the settings of this folder or user; None: nothing.

    `wandb.init` would let the mode that it is given win over it.
    """
    from wandb.sdk import wandb_setup

    with contextlib.suppress(Exception):  # a file that W&B cannot read, which it says itself
        mode: str | None = wandb_setup.singleton().settings.read_system_settings().all().get("mode")
        return mode
    return None


def _failed_lately(folder: Path) -> bool:
    """Whether W&B could not be reached from this process, or within `REMEMBERED` seconds from this run."""
    try:
        return _process.unreached or time.time() - (folder / UNREACHED).stat().st_mtime < REMEMBERED
    except OSError:
        return False


def _remember_failure(folder: Path) -> None:
    _process.unreached = True
    with contextlib.suppress(OSError):
        (folder / UNREACHED).touch()


def _logged_in() -> bool:
    """Whether W&B finds a key or a token without asking for it."""
    from wandb.sdk.lib import urls, wbauth

    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    with contextlib.suppress(Exception):  # a key of the wrong form: W&B itself will say so
        return bool(wbauth.read_netrc_auth(host=os.environ.get("WANDB_BASE_URL") or urls.DEFAULT_BASE_URL))
    return False
