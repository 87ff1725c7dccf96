"""The road from data to an evaluated PPO policy, in 4-bit and at the smallest size, through the command line."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT, SMALLEST

from rlrecipes.__main__ import main
from rlrecipes.recipe import recipe_names
from rlrecipes.run import STAGES
from rlrecipes.versions import LIBRARIES

OWN = ("--data", "pairs.jsonl")


def record(folder, stage):
    return json.loads((folder / stage / "done.json").read_text(encoding="utf-8"))


def times(folder):
    """When each stage was closed: unchanged as long as nothing is made again."""
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("*/done.json")}


def run(name, *arguments, recipe="translation", command="run"):
    return main([command, recipe, "--run", name, *SMALLEST, *arguments])


def interrupt(job, model_name, folder, tracker):
    (folder / "half").write_text("written")
    raise KeyboardInterrupt


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_records_what_it_did_and_under_what(finished, stage):
    done = record(finished, stage)
    assert done["stage"] == stage
    assert done["seed"] == 0
    assert done["settings"]["data.fingerprint"] == done["data"]["fingerprint"]
    assert len(done["data"]["fingerprint"]) == 16
    assert done["data"]["source"] == "pairs.jsonl"
    kept = done["data"]["kept"]
    assert kept["demonstrations"] + kept["held_out"] == 60
    assert kept["held_out_comparisons"]
    assert done["data"]["dropped"] == {}
    assert set(done["versions"]) == set(LIBRARIES)
    assert "git_commit" in done
    assert done["seconds"] >= 0
    assert done["peak_memory_mb"] > 0


def test_settings_hold_those_of_the_stages_below(finished):
    assert record(finished, "sft")["settings"]["sft.max_steps"] == 2
    assert "ppo.kl_coef" not in record(finished, "sft")["settings"]
    settings = record(finished, "evaluate")["settings"]
    assert settings["model.quantization"] == "nf4"
    assert settings["base.max_steps"] == 3
    assert settings["sft.max_steps"] == 2
    assert settings["terms.chrf"] == 0.3
    assert settings["evaluate.limit"] == 6


def test_every_policy_has_every_metric_with_an_interval_around_it(finished):
    done = record(finished, "evaluate")
    assert done["headline"] == "chrf"
    assert done["metrics"].keys() == {"base", "sft", "ppo"}
    for metrics in done["metrics"].values():
        assert {"chrf", "bleu", "exact_match", "reward"} <= metrics.keys()
        for interval in metrics.values():
            assert interval.keys() == {"value", "low", "high"}
            assert interval["low"] <= interval["value"] <= interval["high"]


def test_policies_are_compared_in_pairs(finished):
    comparisons = record(finished, "evaluate")["comparisons"]
    assert comparisons.keys() == {"sft_over_base", "ppo_over_sft"}
    metrics = record(finished, "evaluate")["metrics"]
    gain = metrics["ppo"]["chrf"]["value"] - metrics["sft"]["chrf"]["value"]
    assert comparisons["ppo_over_sft"]["gain"]["value"] == pytest.approx(gain, abs=2e-6)


def test_samples_hold_each_policys_answer_with_its_headline_and_reward(finished):
    lines = (finished / "evaluate" / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(rows) == 6
    for row in rows:
        assert row["prompt"][-1]["role"] == "user"
        assert row["prompt"][-1]["content"].startswith("Translate: ")
        assert len(row["references"]) == 1
        assert row["policies"].keys() == {"base", "sft", "ppo"}
        assert all(given.keys() == {"answer", "headline", "reward"} for given in row["policies"].values())
    mean = sum(row["policies"]["ppo"]["headline"] for row in rows) / len(rows)
    assert record(finished, "evaluate")["metrics"]["ppo"]["chrf"]["value"] == pytest.approx(mean, abs=1e-6)


def test_the_reward_models_accuracy_on_held_out_comparisons_has_an_interval(finished):
    metrics = record(finished, "reward")["metrics"]
    assert 0 <= metrics["accuracy"]["low"] <= metrics["accuracy"]["value"] <= metrics["accuracy"]["high"] <= 1
    assert metrics["held_out_comparisons"] == record(finished, "reward")["data"]["kept"]["held_out_comparisons"]


def test_the_stages_leave_small_adapters_and_a_page(finished):
    for stage in ("sft", "reward", "ppo"):
        weights = finished / stage / "adapter" / "adapter_model.safetensors"
        assert weights.stat().st_size < 2_000_000
    assert (finished / "ppo" / "value_head.safetensors").is_file()
    assert "<html" in (finished / "report" / "index.html").read_text(encoding="utf-8").lower()
    assert not list(finished.glob("wandb"))


def test_ppo_logs_every_update(finished):
    lines = [json.loads(line) for line in (finished / "ppo" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert lines[0]["objective/kl"] == pytest.approx(0, abs=1e-4)
    assert {"terms/chrf", "terms/learned", "policy/grad_norm", "answers/ended"} <= lines[0].keys()


def test_what_is_done_is_not_done_again_and_answers_without_torch(finished, home):
    before = times(finished)
    arguments = ["run", "translation", "--run", "t", *OWN, *SMALLEST]
    code = f"""
import sys
from rlrecipes.__main__ import main
status = main({arguments!r})
assert not {{"torch", "transformers", "trl", "peft", "datasets", "wandb"}} & set(sys.modules)
sys.exit(status)
"""
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=home, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.count("done already") == len(STAGES)
    assert times(finished) == before


def test_another_setting_is_refused_with_what_differs(finished, home, capsys):
    before = times(finished)
    assert run("t", *OWN, "sft.learning_rate=0.5") == 2
    error = capsys.readouterr().err
    assert "sft.learning_rate = 0.001 where you now have 0.5" in error
    assert "RUN=" in error
    assert "FORCE=1" in error
    assert times(finished) == before


def test_a_stage_alone_is_refused_on_ground_made_under_other_settings(finished, home, capsys):
    assert run("t", *OWN, "sft.learning_rate=0.5", command="evaluate") == 2
    assert "sft.learning_rate" in capsys.readouterr().err


def test_other_data_are_refused(finished, home, capsys):
    assert run("t", command="evaluate") == 2
    assert "data.source" in capsys.readouterr().err


def test_a_stage_whose_ground_is_missing_says_what_to_run_first(home, capsys):
    assert run("nothing", *OWN, command="ppo") == 2
    assert "make sft RECIPE=translation" in capsys.readouterr().err
    assert not (home / "runs" / "nothing").exists()


def test_the_same_seed_gives_the_same_numbers_and_force_makes_them_again_and_another_seed_does_not(finished, home):
    again = home / "runs" / "again" / "translation"
    assert run("again", *OWN) == 0
    for name in ("metrics", "comparisons"):
        assert record(again, "evaluate")[name] == record(finished, "evaluate")[name]
    for stage in ("sft", "reward", "ppo"):
        weights = [folder / stage / "adapter" / "adapter_model.safetensors" for folder in (again, finished)]
        assert weights[0].read_bytes() == weights[1].read_bytes()
    before, metrics = times(again), record(again, "evaluate")["metrics"]

    assert run("again", *OWN, "--seed", "1") == 2
    assert run("again", *OWN, "--seed", "1", "--force") == 0
    assert all(times(again)[stage] > before[stage] for stage in STAGES)
    assert record(again, "evaluate")["seed"] == 1
    assert record(again, "evaluate")["metrics"] != metrics


def test_forcing_one_stage_takes_down_what_stood_on_it(home):
    folder = home / "runs" / "forced" / "translation"
    assert run("forced", *OWN) == 0
    before = times(folder)
    assert run("forced", *OWN, "--force", command="ppo") == 0
    assert times(folder).keys() == {"sft", "reward", "ppo"}
    assert times(folder)["ppo"] > before["ppo"]
    assert times(folder)["sft"] == before["sft"]


def test_an_interrupted_stage_leaves_nothing_and_the_next_call_goes_on_there(home, monkeypatch, capsys):
    folder = home / "runs" / "broken" / "translation"
    with monkeypatch.context() as patch:
        patch.setattr("rlrecipes.stages.ppo.run", interrupt)
        assert run("broken", *OWN) == 75
    assert "goes on" in capsys.readouterr().err
    assert sorted(path.name for path in folder.iterdir()) == ["reward", "sft"]
    before = times(folder)

    assert run("broken", *OWN) == 0
    after = times(folder)
    assert after.keys() == set(STAGES)
    assert {stage: after[stage] for stage in before} == before


def test_an_interrupted_forced_stage_leaves_the_old_one(home, monkeypatch):
    folder = home / "runs" / "kept" / "translation"
    assert run("kept", *OWN) == 0
    before = times(folder)
    monkeypatch.setattr("rlrecipes.stages.ppo.run", interrupt)
    assert run("kept", *OWN, "--force", command="ppo") == 75
    assert times(folder) == before
    assert not (folder / "ppo" / "half").exists()


def test_without_the_learned_reward_there_is_no_reward_model(home):
    folder = home / "runs" / "unlearned" / "translation"
    assert run("unlearned", *OWN, "terms.learned=0") == 0
    assert times(folder).keys() == set(STAGES) - {"reward"}
    assert "reward" not in record(folder, "ppo")["adapters"]
    assert "terms/learned" not in record(folder, "ppo")["metrics"]


def test_the_reward_is_the_weighted_sum_of_its_terms(home):
    folder = home / "runs" / "unlearned" / "translation"
    assert run("unlearned", *OWN, "terms.learned=0") == 0
    rows = [json.loads(line) for line in (folder / "evaluate" / "samples.jsonl").read_text().splitlines()]
    for row in rows:
        for given in row["policies"].values():
            assert given["reward"] == pytest.approx(0.3 * given["headline"])  # both are chrF here


def test_each_policys_answers_are_those_of_its_adapter_loaded_by_peft_alone(home):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    rates = ("sft.learning_rate=0.05", "ppo.learning_rate=0.05", "ppo.cliprange=0.9")  # far enough to tell them apart
    assert run("wild", *OWN, *rates, "model.quantization=none", "terms.learned=0") == 0
    folder = home / "runs" / "wild" / "translation"
    rows = [json.loads(line) for line in (folder / "evaluate" / "samples.jsonl").read_text().splitlines()]
    answers = {policy: [row["policies"][policy]["answer"] for row in rows] for policy in ("base", "sft", "ppo")}
    assert answers["base"] != answers["sft"] != answers["ppo"]

    (base,) = (home / "runs" / ".base").glob("[!.]*")
    tokenizer = AutoTokenizer.from_pretrained(base)
    for policy in ("sft", "ppo"):
        model = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(base), folder / policy / "adapter"
        ).eval()
        for row, answer in zip(rows, answers[policy], strict=True):
            text = tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
            prompt = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
            ids = model.generate(input_ids=prompt, max_new_tokens=6, do_sample=False)[0, prompt.shape[1] :]
            assert tokenizer.decode(ids, skip_special_tokens=True).strip() == answer


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_gets_through_on_its_built_in_data(home, name):
    assert run("all", recipe=name) == 0
    folder = home / "runs" / "all" / name
    done = record(folder, "evaluate")
    assert done["examples"] == 6
    assert done["data"]["source"] == "built-in"
    assert done["headline"] in done["metrics"]["ppo"]
    assert (folder / "report" / "index.html").is_file()


def test_tracking_offline_leaves_a_run_to_upload_for_each_stage_that_measures(home, capsys):
    assert run("tracked", *OWN, "track.wandb=offline") == 0
    offline = list((home / "runs" / "tracked" / "translation" / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(offline) == 4
    assert "wandb sync" in capsys.readouterr().out


def test_checkpointing_and_accumulation_and_full_precision_get_through(home):
    settings = (
        "ppo.gradient_checkpointing=true",
        "sft.gradient_checkpointing=true",
        "reward.gradient_checkpointing=true",
    )
    batches = ("ppo.per_device_train_batch_size=2", "ppo.gradient_accumulation_steps=4", "ppo.num_mini_batches=2")
    assert run("large", *OWN, *settings, *batches, "model.quantization=none", "lora.lora_dropout=0.1") == 0


def test_a_model_folder_of_ones_own_stands_in_for_the_embedded_base(home, checkpoint):
    assert run("own-model", *OWN, "--model", str(checkpoint.model)) == 0
    settings = record(home / "runs" / "own-model" / "translation", "evaluate")["settings"]
    assert settings["model.name"] == str(checkpoint.model)
    assert not any(key.startswith("base.") for key in settings)


def test_a_job_runs_no_stage_that_it_was_not_asked_for(home):
    assert run("one", *OWN, command="sft") == 0
    assert times(home / "runs" / "one" / "translation").keys() == {"sft"}
