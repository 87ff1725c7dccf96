"""Several processes come to what one comes to: losses, weights, answers and records, whatever their number."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, SMALLEST, sentences, write_rows
from ranks import Ranks
from safetensors.torch import load_file

UNLIKE = (
    "seconds",
    "cpu_seconds",
    "finished",
    "peak_memory_mb",
    "git_commit",
    "files",
    "sha256",
    "eps",
    "machine",
    "resumed",
)
TIMES = ("_runtime", "_per_second")
OWN, MANY = ("--data", "pairs.jsonl"), ("--data", "many.jsonl")


@pytest.fixture(scope="module")
def ranks():
    with Ranks() as ranks:
        yield ranks


def same(ours, theirs) -> bool:
    """Whether two records say the same, numbers up to 1e-5."""
    if isinstance(ours, dict):
        kept = [key for key in ours if key not in UNLIKE and not key.endswith(TIMES)]
        return ours.keys() == theirs.keys() and all(same(ours[key], theirs[key]) for key in kept)
    if isinstance(ours, list):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    return ours == pytest.approx(theirs, rel=1e-5, abs=1e-5) if isinstance(ours, float) else ours == theirs


def content(path: Path):
    if path.name == "done.json":
        return json.loads(path.read_text())
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    if path.suffix == ".safetensors":
        return {name: tensor.flatten().tolist() for name, tensor in load_file(path).items()}
    return None


def different(ours: Path, theirs: Path) -> list[str]:
    """The files that two runs have not both, or in which they say something else."""
    names = {path.relative_to(folder) for folder in (ours, theirs) for path in folder.rglob("*") if path.is_file()}
    there = {name for name in names if (ours / name).is_file() and (theirs / name).is_file()}
    return sorted(map(str, names - there)) + sorted(
        str(name) for name in there if not same(content(ours / name), content(theirs / name))
    )


def test_sft_in_several_processes_is_that_of_one(ranks, home):
    shape = ("sft.max_steps=4", "sft.logging_steps=1", "sft.gradient_accumulation_steps=2", "lora.lora_dropout=0")
    for world in (1, 2, 3):  # micro-batches of 2 rows leave one of three processes idle
        arguments = ("sft", "translation", "--run", f"sft-in-{world}", *OWN, *SMALLEST, *shape)
        done = ranks(world, home, *arguments, "sft.per_device_train_batch_size=2")
        assert done.statuses == [0] * world, done.outputs
        assert done.outputs[1:] == [""] * (world - 1), "the first process alone talks"
    runs = home / "runs"
    for world in (2, 3):
        assert different(runs / "sft-in-1", runs / f"sft-in-{world}") == []


QUICKLY = """
import rlrecipes.run.alive as alive, rlrecipes.run.processes as processes
processes.SILENCE = alive.SILENCE = 10.0
processes.ANSWER = alive.ANSWER = 3.0
"""
"""A process is lost sooner."""
INTERRUPTED_AT = """
import os, signal
from rlrecipes.run.checkpoint import Checkpoints
usual, asked = Checkpoints.due, []
def due(self):
    asked.append(self)
    if rank == %d and len(asked) == %d:
        os.kill(os.getpid(), signal.SIGTERM)
    return usual(self)
Checkpoints.due = due
"""
"""Has one of the processes get a signal at the n-th moment at which it might save."""
ROAD = (
    *("lora.lora_dropout=0", "sft.max_steps=3", "sft.logging_steps=1", "reward.logging_steps=1"),
    *("reward.learning_rate=1e-4", "reward.max_steps=3", "evaluate.batch_size=3", "ppo.total_episodes=24"),
    *("ppo.keep=last", "ppo.num_mini_batches=2", "ppo.learning_rate=1e-3", "ppo.local_rollout_forward_batch_size=5"),
    *("ppo.kl_target=1", "ppo.kl_horizon=100", "ppo.eval_every=1", "ppo.dense_rollout=always"),
)


def test_the_road_begun_in_two_processes_and_ended_in_others_is_that_of_one(ranks, home):
    write_rows(home / "many.jsonl", sentences(300))  # so that rows are set aside to choose the best step by

    def road(world: int, run: str, *interrupted: int):
        code = {"code": INTERRUPTED_AT % interrupted} if interrupted else {}
        return ranks(world, home, "run", "translation", "--run", run, *MANY, *SMALLEST, *ROAD, **code)

    assert road(1, "whole").statuses == [0]
    for world, moment in ((2, (1, 2)), (3, (2, 6)), (2, (0, 3))):  # in SFT, in PPO, in the answers
        done = road(world, "parted", *moment)
        assert done.statuses == [75] * world, done.outputs
        assert done.outputs[0].count("interrupted, saved after step") == 1
        assert "interrupted" not in "".join(done.outputs[1:])
    last = road(1, "parted")
    assert last.statuses == [0], last.outputs
    assert "going on after step" in last.outputs[0]
    assert different(home / "runs" / "whole", home / "runs" / "parted") == []


SLOW_TO_END = """
import time
from rlrecipes.run.checkpoint import Checkpoints
alive.Alive.tell = lambda *arguments: None
usual_save = Checkpoints.save
def save(self, *arguments):
    try:
        usual_save(self, *arguments)
    finally:
        time.sleep(6 * rank)
Checkpoints.save = save
"""


def test_a_process_that_ends_long_after_the_first_once_all_have_saved_ends_as_that_did(ranks, home):
    code = QUICKLY + INTERRUPTED_AT % (0, 1) + SLOW_TO_END
    done = ranks(2, home, "sft", "translation", "--run", "slow", *OWN, *SMALLEST, code=code)
    assert done.statuses == [75, 75], done.outputs


def test_a_process_that_is_killed_changes_no_byte_where_as_many_go_on(ranks, home):
    arguments = ("sft", "translation", *OWN, *SMALLEST, "sft.max_steps=4", "checkpoint.seconds=0")  # with dropout
    assert ranks(2, home, *arguments, "--run", "unharmed").statuses == [0, 0]
    code = (INTERRUPTED_AT % (1, 3)).replace("SIGTERM", "SIGKILL")
    done = ranks(2, home, *arguments, "--run", "harmed", code=code)
    assert done.statuses == [2, -signal.SIGKILL], done.outputs
    assert "process 1 of 2 (counted from 0) gave no sign of life" in done.outputs[0]
    last = ranks(2, home, *arguments, "--run", "harmed")
    assert last.statuses == [0, 0], last.outputs
    assert "going on after step 2" in last.outputs[0]
    weights = "translation/sft/adapter/adapter_model.safetensors"
    unharmed, harmed = ((home / "runs" / run / weights).read_bytes() for run in ("unharmed", "harmed"))
    assert unharmed == harmed


def test_ppo_with_a_value_adapter_and_an_idle_process_is_that_of_one(ranks, home, finished):
    shape = ("ppo.value=adapter", "ppo.per_device_train_batch_size=2", "ppo.total_episodes=4")
    for world in (1, 3):
        arguments = ("ppo", "translation", "--run", f"valued-{world}", "--from", "t", *OWN, *SMALLEST, *shape)
        done = ranks(world, home, *arguments, "ppo.gradient_accumulation_steps=1")
        assert done.statuses == [0] * world, done.outputs
    assert different(home / "runs" / "valued-1", home / "runs" / "valued-3") == []


@pytest.mark.parametrize("algorithm", ["rloo", "grpo"])
def test_groups_of_answers_that_processes_share_are_those_of_one(ranks, home, finished, algorithm):
    shape = ("total_episodes=16", "per_device_train_batch_size=2", "gradient_accumulation_steps=2", "anyway=true")
    shape += ("steps_per_generation=4", "num_iterations=2", "local_rollout_forward_batch_size=6", "keep=last")
    shape += ("dynamic_sampling=true", "num_generations=2", "temperature=0.1")  # so that some score the same
    settings = [f"{algorithm}.{each}" for each in shape]
    for world in (1, 2):
        run = ("--run", f"{algorithm}-in-{world}", "--from", "t")
        done = ranks(world, home, algorithm, "translation", *run, *OWN, *SMALLEST, *settings)
        assert done.statuses == [0] * world, done.outputs
    log = content(home / "runs" / f"{algorithm}-in-1" / "translation" / algorithm / "log.jsonl")
    assert 1 < max(row["groups/draws"] for row in log) <= 10
    assert different(home / "runs" / f"{algorithm}-in-1", home / "runs" / f"{algorithm}-in-2") == []


def test_a_run_from_the_base_by_a_function_that_checks_answers_is_that_of_one_process(ranks, home):
    (home / "several_rewards.py").write_text(
        "def brief(prompts, completions, target, **kwargs):\n    return [1 / (1 + len(text)) for text in completions]\n"
    )
    small = [s for s in SMALLEST if not s.startswith(("sft.", "reward.", "evaluate.policies", "ppo."))]
    shape = ("total_episodes=16", "per_device_train_batch_size=4", "gradient_accumulation_steps=2", "keep=last")
    settings = [*small, "ppo.response_length=6", *(f"grpo.{each}" for each in shape), "run.algorithms=grpo"]
    settings += ["run.start=base", "terms.learned=0", "reward.function=several_rewards.py:brief", "evaluate.pass_at=2"]
    for world in (1, 2):
        done = ranks(world, home, "run", "translation", "--run", f"checked-in-{world}", *OWN, *settings)
        assert done.statuses == [0] * world, done.outputs
    assert different(home / "runs" / "checked-in-1", home / "runs" / "checked-in-2") == []


def test_comparisons_that_processes_share_are_those_of_one(ranks, home, finished):
    shape = ("max_steps=4", "logging_steps=1", "gradient_accumulation_steps=2", "learning_rate=1e-3")
    settings = [f"dpo.{each}" for each in (*shape, "loss_type=sigmoid,sft", "per_device_train_batch_size=2")]
    few = [s for s in SMALLEST if not s.startswith(("ppo.", "reward.", "evaluate."))]
    for world in (1, 2, 3):  # four answers in a micro-batch
        run = ("--run", f"dpo-in-{world}", "--from", "t")
        done = ranks(world, home, "dpo", "translation", *run, *OWN, *few, *settings)
        assert done.statuses == [0] * world, done.outputs
        assert done.outputs[1:] == [""] * (world - 1), "the first process alone talks"
    for world in (2, 3):
        assert different(home / "runs" / "dpo-in-1", home / "runs" / f"dpo-in-{world}") == []


def test_answers_that_processes_draw_to_learn_from_are_those_of_one(ranks, home):
    shape = ("max_steps=4", "logging_steps=1", "learning_rate=1e-3", "per_device_train_batch_size=4", "anyway=true")
    settings = [f"distill.{each}" for each in (*shape, "num_generations=3", "local_rollout_forward_batch_size=12")]
    few = [s for s in SMALLEST if not s.startswith(("ppo.", "evaluate."))]
    begun = (*OWN, *few, "lora.lora_dropout=0", "ppo.response_length=6")
    for stage in ("sft", "reward"):
        assert ranks(1, home, stage, "translation", "--run", "distill-begun", *begun).statuses == [0]
    for world in (1, 2):
        run = ("--run", f"distill-in-{world}", "--from", "distill-begun")
        done = ranks(world, home, "distill", "translation", *run, *begun, *settings)
        assert done.statuses == [0] * world, done.outputs
    assert different(home / "runs" / "distill-in-1", home / "runs" / "distill-in-2") == []


def test_dpo_begun_in_two_processes_and_ended_in_others_is_that_of_one(ranks, home, finished):
    write_rows(home / "many.jsonl", sentences(300))  # so that rows are set aside to choose the best step by
    few = [s for s in SMALLEST if not s.startswith(("ppo.", "reward.", "evaluate."))]
    settings = ("dpo.max_steps=4", "dpo.per_device_train_batch_size=8", "dpo.logging_steps=1", "lora.lora_dropout=0")

    def ends(world: int, run: str, *interrupted: int):
        code = {"code": INTERRUPTED_AT % interrupted} if interrupted else {}
        options = ("translation", "--run", run, *MANY, *few, *settings)
        if not (home / "runs" / run).exists():
            assert ranks(1, home, "sft", *options[: -len(settings)], "lora.lora_dropout=0").statuses == [0]
        return ranks(world, home, "dpo", *options, "dpo.learning_rate=1e-3", **code)

    assert ends(1, "dpo-whole").statuses == [0]
    for world, moment in ((2, (1, 3)), (3, (0, 9))):  # in the reference, in training
        done = ends(world, "dpo-parted", *moment)
        assert done.statuses == [75] * world, done.outputs
    last = ends(1, "dpo-parted")
    assert last.statuses == [0], last.outputs
    assert "going on after step" in last.outputs[0]
    assert different(home / "runs" / "dpo-whole", home / "runs" / "dpo-parted") == []


RAISES = """
import rlrecipes.stages.sft as stage
from rlrecipes.errors import UserError
def fails(*arguments):
    raise {error}
if rank == {rank}:
    stage.add_lora = fails
"""


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        ("UserError('the sky fell; mend it')", 2, "error: the sky fell; mend it\n"),
        ("ValueError('a fault of ours')", 1, "broke down (ValueError: a fault of ours), and the others ended with it"),
    ],
)
def test_an_error_in_one_process_ends_all_and_is_told_once(ranks, home, rank, error, status, said):
    code = RAISES.format(error=error, rank=rank)
    done = ranks(2, home, "sft", "translation", "--run", "failing", *OWN, *SMALLEST, code=code)
    assert done.statuses == [status if number == rank else 2 for number in (0, 1)]
    assert sum(output.count("error: ") for output in done.outputs) == (1 if status == 2 or rank == 1 else 0)
    if status == 2 or rank == 1:
        assert said in done.outputs[0]
    assert not list((home / "runs" / "failing").glob("**/done.json"))


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_a_process_that_is_killed_or_stopped_ends_the_others_with_a_sentence(ranks, home, rank, number):
    arguments = ("sft", "translation", "--run", "lost", *OWN, *SMALLEST, "sft.max_steps=100000")
    done = ranks(2, home, *arguments, code=QUICKLY, signals=[(rank, number, "100000 steps")])
    assert done.statuses[1 - rank] == 2
    said = f"error: process {rank} of 2 (counted from 0) gave no sign of life and the others ended with it; "
    assert done.outputs[1 - rank].count(said) == 1
    assert "give the same command again" in done.outputs[1 - rank]


def test_a_command_line_that_is_refused_is_told_once(ranks, home):
    done = ranks(3, home, "sft", "translation", "--data", "nowhere.jsonl")
    assert done.statuses == [2, 2, 2]
    assert done.outputs[0].startswith("error: there is no file or folder 'nowhere.jsonl'")
    assert done.outputs[1:] == ["", ""]


@pytest.mark.parametrize(("rank", "said"), [(0, ["1 of WORLD_SIZE=2 processes are here"]), (1, [])])
def test_what_a_launcher_left_behind_is_told_and_waits_for_nobody_against_a_signal(home, rank, said):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    left = {"WORLD_SIZE": "2", "RANK": str(rank), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    command = [sys.executable, "-m", "rlrecipes", "sft", "translation"]
    environment = {**os.environ, **left, "PYTHONPATH": str(ROOT)}
    waiting = subprocess.Popen(command, cwd=home, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        assert waiting.stderr is not None
        lines = [waiting.stderr.readline() for _ in said]
        if not said:
            time.sleep(3)  # by then it knocks where nobody opens
        for _ in range(2):  # as `timeout` sends them
            waiting.send_signal(signal.SIGTERM)
        rest = waiting.communicate(timeout=30)[1]
    finally:
        waiting.kill()
    assert [part in line for part, line in zip(said, lines, strict=True)] == [True] * len(said)
    assert "Traceback" not in rest
    assert waiting.returncode in (75, -signal.SIGTERM)  # the second one may find it gone but for its memory


def test_a_process_that_cannot_meet_the_others_says_so_itself(home):
    for left, said in ({"RANK": "1"}, "MASTER_PORT is missing"), ({"RANK": "5", "MASTER_PORT": "1"}, "is none of"):
        environment = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", **left, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "rlrecipes", "sft", "translation"]
        done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert said in done.stderr


def test_what_one_process_does_is_done_by_the_first_alone(ranks, home):
    done = ranks(2, home, "list")
    assert done.statuses == [0, 0]
    assert "translation" in done.outputs[0]
    assert done.outputs[1] == ""


def test_settings_of_one_process_are_refused_in_several(ranks, home):
    for setting, why in (
        ("model.device=0", "has no effect on several processes"),
        ("memory.halve_on_oom=true", "has no effect on several processes"),
    ):
        done = ranks(2, home, "sft", "translation", "--run", "refused", *OWN, *SMALLEST, setting)
        assert done.statuses == [2, 2]
        assert f"error: {setting} {why}" in done.outputs[0]
        assert done.outputs[1] == ""
