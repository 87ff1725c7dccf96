"""What evaluation compares: policies of the run by name, and others by folder."""

import json

import pytest
from conftest import SMALLEST, main

from rlrecipes.errors import UserError
from rlrecipes.run.folder import Run
from rlrecipes.run.policies import check_shared, chosen
from rlrecipes.run.stages import POLICIES

RUN = Run("t", "translation")


def test_all_are_the_tables_and_names_come_in_its_order_with_commas_or_spaces():
    assert list(chosen("all", RUN)) == list(POLICIES)
    assert list(chosen("ppo,base, sft", RUN)) == list(chosen("ppo base sft", RUN)) == ["base", "sft", "ppo"]


def test_a_name_that_is_neither_a_policy_nor_a_folder_is_refused_with_the_nearest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no policy 'best5'; did you mean 'best4'"):
        chosen("base,best5", RUN)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty holds no adapter_config"):
        chosen("empty", RUN)


def test_a_run_an_adapter_and_a_whole_model_are_told_apart_and_the_runs_last_stays_the_last(finished, home, checkpoint):
    found = chosen(f"sft ppo runs/t runs/t/translation/sft/adapter {checkpoint.model}", RUN)
    assert list(found) == ["sft", "runs/t", "runs/t/translation/sft/adapter", str(checkpoint.model), "ppo"]
    assert found["runs/t"].place == "runs/t/translation/ppo/adapter"
    assert found["runs/t/translation/sft/adapter"].role
    assert found[str(checkpoint.model)].role is None


def test_an_adapter_of_another_base_is_refused_and_one_that_is_no_policy(finished, home, checkpoint):
    base = json.loads((finished / "sft" / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"]
    check_shared(chosen("runs/t", RUN), base)
    with pytest.raises(UserError, match="runs/t stands on"):
        check_shared(chosen("runs/t", RUN), str(checkpoint.model))
    with pytest.raises(UserError, match="was trained for SEQ_CLS"):
        check_shared(chosen("runs/t/translation/reward/adapter", RUN), base)


def test_an_export_is_the_adapter_in_it_and_stands_on_the_same_embedded_base(finished, base, home, checkpoint):
    place = home / "exported"
    assert main(["export", "translation", "--run", "t", "--to", str(place)]) == 0
    found = chosen(f"sft {place}", RUN)
    assert found[str(place)].place == str(place / "adapter")
    check_shared(found, str(base))
    with pytest.raises(UserError, match="exported stands on"):
        check_shared(found, str(checkpoint.model))
    (place / "base" / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match="exported stands on"):
        check_shared(found, str(base))


def test_policies_from_elsewhere_answer_and_are_compared_with_sft(apart, home, checkpoint):
    policies = f"evaluate.policies=sft ppo runs/apart {checkpoint.model}"
    assert main(["run", "translation", "--run", "elsewhere", "--data", "pairs.jsonl", *SMALLEST, policies]) == 0
    folder = home / "runs" / "elsewhere" / "translation" / "evaluate"
    done = json.loads((folder / "done.json").read_text(encoding="utf-8"))
    assert list(done["metrics"]) == ["sft", "runs/apart", str(checkpoint.model), "ppo"]
    assert {"runs/apart_over_sft", "ppo_over_sft"} <= done["comparisons"].keys()
    assert done["kl"]["runs/apart"]["value"] > done["kl"]["ppo"]["value"]
    assert done["elsewhere"]["runs/apart"] == "runs/apart/translation/ppo/adapter"
    theirs = [json.loads(line) for line in (apart / "evaluate" / "samples.jsonl").read_text().splitlines()]
    assert len(theirs) == done["examples"]
