"""The table of stages and policies: what is added to it is known everywhere."""

import io
import json
import shutil
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
from conftest import SMALLEST, main

from rlrecipes.profile import ALGORITHMS
from rlrecipes.run.stages import POLICIES, STAGES, Policy, Stage, above, below


@pytest.fixture
def toy(monkeypatch):
    """A stage that copies the SFT adapter, and the policy that it makes: a row each and one file."""

    def run(job, model_name, folder, tracker):
        shutil.copytree(job.run.stage("sft") / "adapter", folder / "adapter")
        return {"metrics": {}, "adapters": {"toy": "adapter"}}

    stages, policies = dict(STAGES), dict(POLICIES)
    POLICIES["toy"] = Policy("Toy", "toy", "toy", over="sft", training="by hand")
    later = {name: STAGES.pop(name) for name in ("answers", "evaluate", "report")}
    STAGES["toy"] = Stage("a copy of SFT", stands_on=("sft",))
    later["answers"] = replace(later["answers"], stands_on=(*later["answers"].stands_on, "toy"))
    STAGES.update(later)
    monkeypatch.setitem(sys.modules, "rlrecipes.stages.toy", SimpleNamespace(run=run))
    yield
    for table, rows in ((STAGES, stages), (POLICIES, policies)):
        table.clear()
        table.update(rows)


def test_a_stage_stands_on_what_its_stages_stand_on():
    assert below("evaluate") == ["sft", "reward", "judge", "ppo", "rloo", "grpo", "dpo", "distill", "answers"]
    assert below("answers") == ["sft", "reward", "ppo", "rloo", "grpo", "dpo", "distill"]
    assert below("dpo") == ["sft"]
    assert below("sft") == []
    assert above("reward") == ["ppo", "rloo", "grpo", "distill", "answers", "evaluate", "report"]


def test_the_profile_has_a_table_for_every_algorithm():
    assert tuple(name for name, stage in STAGES.items() if stage.algorithm) == ALGORITHMS


def test_a_new_stage_and_its_policy_run_and_are_judged_shown_talked_to_and_exported(toy, home, capsys, monkeypatch):
    folder = home / "runs" / "toy" / "translation"
    small = [*SMALLEST, "evaluate.policies=all"]
    assert main(["run", "translation", "--run", "toy", "--data", "pairs.jsonl", *small]) == 0
    assert "Toy over SFT" in capsys.readouterr().out

    evaluated = json.loads((folder / "evaluate" / "done.json").read_text(encoding="utf-8"))
    assert evaluated["metrics"]["toy"]["chrf"] == evaluated["metrics"]["sft"]["chrf"]
    assert evaluated["comparisons"]["toy_over_sft"]["gain"]["value"] == 0
    assert "too few to compare Toy with SFT" in (folder / "report" / "index.html").read_text(encoding="utf-8")

    monkeypatch.setattr("sys.stdin", io.StringIO("Das 1. Kind liest.\n"))
    assert main(["chat", "translation", "--run", "toy", "--policy", "toy"]) == 0
    assert main(["export", "translation", "--run", "toy", "--policy", "toy"]) == 0
    assert "by hand" in (folder / "export" / "README.md").read_text(encoding="utf-8")
    assert main(["sft", "translation", "--run", "toy", "--data", "pairs.jsonl", *small, "--force"]) == 0
    assert not (folder / "toy").exists(), "it stood on SFT"


def test_a_new_stage_is_a_command(toy, capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "a copy of SFT" in capsys.readouterr().out
