"""The road from data to an evaluated PPO policy, in 4-bit and at the smallest size, through the command line."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT, SMALLEST, main, sentences, smallest, write_rows

from rlrecipes.errors import UserError
from rlrecipes.model.pretrain import embedded_base
from rlrecipes.profile import load_profile
from rlrecipes.recipe import load_recipe, recipe_names
from rlrecipes.run.checkpoint import Checkpoints
from rlrecipes.run.circumstances import LIBRARIES, versions
from rlrecipes.run.stages import STAGES

OWN = ("--data", "pairs.jsonl")


def record(folder, stage):
    return json.loads((folder / stage / "done.json").read_text(encoding="utf-8"))


def times(folder):
    """When each stage was closed: unchanged as long as nothing is made again."""
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("*/done.json")}


def run(name, *arguments, recipe="translation", command="run"):
    return main([command, recipe, "--run", name, *smallest(arguments), *arguments])


def interrupt(job, model_name, folder, tracker):
    (folder / "scale.json").write_text("written")
    raise KeyboardInterrupt


MADE = [stage for stage in STAGES if stage not in ("judge", "rloo", "grpo", "dpo", "distill")]
"""The stages of `finished`; its file holds out too few comparisons for a judge."""


def test_the_first_stage_already_records_the_columns_that_nobody_reads(home):
    write_rows(home / "noted.jsonl", [{**row, "editor": "Ada"} for row in sentences(60)])
    assert main(["sft", "translation", "--run", "noted", "--data", "noted.jsonl", *SMALLEST]) == 0
    done = record(home / "runs" / "noted" / "translation", "sft")
    assert "Not read: 'editor' (60 rows)." in done["data"]["notes"]


@pytest.mark.parametrize("stage", MADE)
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
    assert done["data"]["notes"] == record(finished, "report")["notes"]
    assert set(done["versions"]) == set(LIBRARIES)
    assert done["machine"].keys() == {"cpu", "cores", "threads"}
    assert "git_commit" in done
    assert done["seconds"] >= 0
    assert done["cpu_seconds"] > 0
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
    assert done["metrics"].keys() == {"base", "sft", "best4", "ppo"}
    for metrics in done["metrics"].values():
        assert {"chrf", "bleu", "exact_match", "reward"} <= metrics.keys()
        for interval in metrics.values():
            assert interval.keys() == {"value", "low", "high"}
            assert interval["low"] <= interval["value"] <= interval["high"]


def test_policies_are_compared_in_pairs(finished):
    comparisons = record(finished, "evaluate")["comparisons"]
    assert comparisons.keys() == {"sft_over_base", "best4_over_sft", "ppo_over_sft"}
    metrics = record(finished, "evaluate")["metrics"]
    gain = metrics["ppo"]["chrf"]["value"] - metrics["sft"]["chrf"]["value"]
    assert comparisons["ppo_over_sft"]["gain"]["value"] == pytest.approx(gain, abs=2e-6)
    sampled = metrics["ppo"]["chrf_sampled"]["value"] - metrics["sft"]["chrf_sampled"]["value"]
    assert comparisons["ppo_over_sft"]["sampled_gain"]["value"] == pytest.approx(sampled, abs=2e-6)


def test_samples_hold_each_policys_answer_with_its_headline_and_reward(finished):
    lines = (finished / "evaluate" / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(rows) == 6
    for row in rows:
        assert row["prompt"][-1]["role"] == "user"
        assert row["prompt"][-1]["content"].startswith("Translate: ")
        assert len(row["references"]) == 1
        assert row["policies"].keys() == {"base", "sft", "best4", "ppo"}
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


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo"])
def test_every_adapter_brings_the_tokenizer_that_asked(finished, base, stage):
    from transformers import AutoTokenizer

    from rlrecipes.model.tokens import FIXED, encode_prompt, open_tokenizer
    from rlrecipes.recipe import user

    brought = AutoTokenizer.from_pretrained(finished / stage / "adapter")
    assert brought.chat_template.startswith(FIXED)
    assert "strftime_now" not in AutoTokenizer.from_pretrained(base).chat_template, "a base stays as it was made"
    asked = brought.apply_chat_template([{"role": "user", "content": "Hi"}], add_generation_prompt=True)["input_ids"]
    assert asked == encode_prompt(open_tokenizer(str(base)), user("Hi"))


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
    assert answer.stdout.count("done already") == len(MADE)
    assert times(finished) == before


def test_another_setting_is_refused_with_what_differs(finished, home, capsys):
    before = times(finished)
    assert run("t", *OWN, "sft.learning_rate=0.5") == 2
    error = capsys.readouterr().err
    assert "sft.learning_rate = 0.001 where you now have 0.5" in error
    assert "--run" in error
    assert "--force" in error
    assert times(finished) == before


def test_a_stage_alone_is_refused_on_ground_made_under_other_settings(finished, home, capsys):
    assert run("t", *OWN, "sft.learning_rate=0.5", command="evaluate") == 2
    assert "sft.learning_rate" in capsys.readouterr().err


def test_other_data_are_refused(finished, home, capsys):
    assert run("t", "--data", "built-in", command="evaluate") == 2
    assert "data.source" in capsys.readouterr().err


def test_a_stage_whose_ground_is_missing_says_what_to_run_first(home, capsys):
    assert run("nothing", *OWN, command="ppo") == 2
    assert "rlrecipes sft translation --run nothing" in capsys.readouterr().err
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
    assert all(times(again)[stage] > before[stage] for stage in MADE)
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
    folder = home / "runs" / "cut-short" / "translation"
    with monkeypatch.context() as patch:
        patch.setattr("rlrecipes.stages.ppo.run", interrupt)
        assert run("cut-short", *OWN) == 75
    assert "give the same command again" in capsys.readouterr().err
    assert sorted(path.name for path in folder.iterdir()) == ["reward", "settings.toml", "sft"]
    before = times(folder)

    assert run("cut-short", *OWN) == 0
    after = times(folder)
    assert after.keys() == set(MADE)
    assert {stage: after[stage] for stage in before} == before


def test_force_keeps_the_old_stage_where_the_new_one_cannot_begin(home, capsys):
    folder = home / "runs" / "unforced" / "translation"
    assert run("unforced", *OWN) == 0
    before = times(folder)
    assert run("unforced", *OWN, "ppo.optim=nothing", "--force", command="ppo") == 2
    assert "ppo.optim" in capsys.readouterr().err
    assert times(folder) == before


@pytest.fixture
def cut(home, monkeypatch):
    """Runs the road until the given stage has saved a checkpoint, and ends it there as a crash would."""

    def run_until(name, stage, *arguments, step=1, error=KeyboardInterrupt, command="run"):
        real = Checkpoints.save

        def save(self, at, state):
            real(self, at, state)
            if self.folder.parent.name == f".{stage}" and at == step:
                raise error

        with monkeypatch.context() as patch:
            patch.setattr(Checkpoints, "save", save)
            status = run(name, *OWN, "checkpoint.seconds=0", *arguments, command=command)
        return home / "runs" / name / "translation", status

    return run_until


@pytest.mark.parametrize(
    ("stage", "step"), [("sft", 1), ("sft", 2), ("reward", 1), ("ppo", 1), ("answers", 1), ("answers", 3)]
)
def test_an_interrupted_stage_goes_on_and_ends_with_the_same_bytes(cut, finished, capsys, stage, step):
    folder, status = cut(f"{stage}-{step}", stage, step=step)
    assert status == 75
    assert not (folder / stage).exists()
    assert (folder / f".{stage}" / "checkpoints").is_dir()
    capsys.readouterr()
    assert run(f"{stage}-{step}", *OWN) == 0
    assert f"going on after step {step}" in capsys.readouterr().out
    resumed = record(folder, stage)["resumed"]
    assert resumed["step"] == step
    for name in MADE[:-1]:
        made, whole = record(folder, name), record(finished, name)
        assert made["metrics"] == whole["metrics"]
        assert sorted(path.name for path in (folder / name).iterdir()) == sorted(
            path.name for path in (finished / name).iterdir()
        )
        for path in (folder / name).rglob("*.safetensors"):
            assert path.read_bytes() == (finished / path.relative_to(folder)).read_bytes()
    assert (folder / "evaluate" / "samples.jsonl").read_bytes() == (
        finished / "evaluate" / "samples.jsonl"
    ).read_bytes()
    assert len((folder / "ppo" / "log.jsonl").read_text().splitlines()) == 2
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["sft.learning_rate=0.5"], "sft.learning_rate = 0.001 where you now have 0.5"),
        (["--seed", "1"], "seed = 0 where you now have 1"),
        (["--data", "more.jsonl"], "data.source"),
    ],
)
def test_an_interrupted_stage_is_not_gone_on_with_under_another_setting_seed_or_data(cut, home, capsys, change, said):
    write_rows(home / "more.jsonl", sentences(61))
    name = f"changed-{change[-1]}"
    folder, _ = cut(name, "sft")
    draft = folder / ".sft"
    before = {path: path.read_bytes() for path in draft.rglob("*") if path.is_file()}
    assert run(name, *OWN, *change) == 2
    error = capsys.readouterr().err
    assert "interrupted sft stage" in error
    assert said in error
    assert "--force" in error
    assert {path: path.read_bytes() for path in draft.rglob("*") if path.is_file()} == before


def test_an_interrupted_stage_is_not_gone_on_with_under_another_library(cut, capsys, monkeypatch):
    cut("library", "sft")
    monkeypatch.setattr("rlrecipes.pipeline.versions", lambda: {**versions(), "torch": "3.0"})
    assert run("library", *OWN) == 2
    assert 'where you now have "3.0"' in capsys.readouterr().err


def test_how_often_it_is_saved_may_change(cut):
    cut("often", "sft")
    assert run("often", *OWN, "checkpoint.seconds=5", command="sft") == 0


def test_force_begins_an_interrupted_stage_again_under_another_setting(cut, capsys):
    folder, _ = cut("begin-again", "sft")
    assert run("begin-again", *OWN, "sft.learning_rate=0.5", "--force", command="sft") == 0
    assert "going on" not in capsys.readouterr().out
    assert record(folder, "sft")["resumed"] is None
    assert record(folder, "sft")["settings"]["sft.learning_rate"] == 0.5


def test_an_interrupted_forced_command_goes_on_without_force(cut, capsys):
    assert run("force-on", *OWN) == 0
    folder, status = cut("force-on", "ppo", "--force")
    assert status == 75
    assert "give the same command again without --force to go on" in capsys.readouterr().err
    after_cut = times(folder)
    assert after_cut.keys() == {"sft", "reward"}
    assert run("force-on", *OWN) == 0
    assert "going on after step 1" in capsys.readouterr().out
    after = times(folder)
    assert {stage: after[stage] for stage in after_cut} == after_cut
    assert not list(folder.glob(".*"))


def test_an_error_keeps_what_was_saved_before_it(cut, capsys):
    folder, status = cut("error", "ppo", error=UserError("the reward term 'odd' gave nan"))
    assert status == 2
    assert sorted(path.name for path in folder.iterdir()) == [".ppo", "reward", "settings.toml", "sft"]
    assert run("error", *OWN) == 0
    assert "going on after step 1" in capsys.readouterr().out


def test_a_damaged_checkpoint_is_named_and_the_one_before_goes_on_to_the_same_bytes(cut, finished, capsys):
    folder, _ = cut("damaged", "ppo", step=2)
    tensors = folder / ".ppo" / "checkpoints" / "step-000002" / "tensors.safetensors"
    content = bytearray(tensors.read_bytes())
    content[-1] ^= 1
    tensors.write_bytes(content)
    assert run("damaged", *OWN) == 0
    out = capsys.readouterr().out
    assert "step-000002/tensors.safetensors has been changed" in out
    assert "going on after step 1" in out
    weights = [where / "ppo" / "adapter" / "adapter_model.safetensors" for where in (folder, finished)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_a_stage_that_was_closed_but_not_yet_in_its_place_is_not_made_again(home, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(
            "rlrecipes.run.folder.Run._place", lambda self, stage: interrupt(None, None, self.draft(stage), None)
        )
        assert run("closed", *OWN, command="sft") == 75
    folder = home / "runs" / "closed" / "translation"
    assert times(folder).keys() == {".sft"}
    (folder / ".sft" / "scale.json").unlink()
    monkeypatch.setattr("rlrecipes.stages.sft.run", interrupt)
    assert run("closed", *OWN, command="sft") == 0
    assert times(folder).keys() == {"sft"}


def half_sealed(folder):
    (folder / "manifest.json.part").write_text("{")
    raise KeyboardInterrupt


def test_the_embedded_base_goes_on_as_well_and_leaves_nothing_but_itself(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("rlrecipes.model.embedded.recipe_names", lambda: ["dialogue"])
    settings = load_profile("tiny", [s for s in SMALLEST if s.startswith("base.")]).base
    whole = embedded_base(settings, tmp_path / "whole", seconds=1e9)
    real = Checkpoints.save

    def save(self, step, state):
        real(self, step, state)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                embedded_base(settings, tmp_path / "cut", seconds=0)
    with monkeypatch.context() as patch:  # killed while it wrote the last file
        patch.setattr("rlrecipes.model.pretrain.seal_base", half_sealed)
        with pytest.raises(KeyboardInterrupt):
            embedded_base(settings, tmp_path / "cut", seconds=0)
    base = embedded_base(settings, tmp_path / "cut", seconds=1e9)
    assert "going on after step 2" in capsys.readouterr().out
    assert list((tmp_path / "cut" / ".base").iterdir()) == [base]
    assert sorted(path.name for path in base.iterdir()) == sorted(path.name for path in whole.iterdir())
    for path in whole.iterdir():
        assert (base / path.name).read_bytes() == path.read_bytes(), path.name


def test_without_the_learned_reward_there_is_no_reward_model(home):
    folder = home / "runs" / "terms-alone" / "translation"
    assert run("terms-alone", *OWN, "terms.learned=0") == 0
    assert times(folder).keys() == set(MADE) - {"reward"}
    assert "reward" not in record(folder, "ppo")["adapters"]
    assert "terms/learned" not in record(folder, "ppo")["metrics"]


def test_the_reward_is_the_weighted_sum_of_its_terms(home):
    folder = home / "runs" / "terms-alone" / "translation"
    assert run("terms-alone", *OWN, "terms.learned=0") == 0
    rows = [json.loads(line) for line in (folder / "evaluate" / "samples.jsonl").read_text().splitlines()]
    for row in rows:
        for given in row["policies"].values():
            assert given["reward"] == pytest.approx(0.3 * given["headline"])  # both are chrF here


def test_each_policys_answers_are_those_of_its_adapter_loaded_by_peft_alone(home, base):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    rates = ("sft.learning_rate=0.05", "ppo.learning_rate=0.05", "ppo.cliprange=0.9")  # far enough to tell them apart
    assert run("wild", *OWN, *rates, "model.quantization=none", "terms.learned=0") == 0
    folder = home / "runs" / "wild" / "translation"
    rows = [json.loads(line) for line in (folder / "evaluate" / "samples.jsonl").read_text().splitlines()]
    answers = {policy: [row["policies"][policy]["answer"] for row in rows] for policy in ("base", "sft", "ppo")}
    assert answers["base"] != answers["sft"] != answers["ppo"]

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
    if load_recipe(name).builtin is None:
        pytest.skip(f"{name} has no world of its own")
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
    folder = home / "runs" / "tracked" / "translation"
    columns = {"step", "prompt", "answer", "reference", "reward", "terms.learned"}
    (first, *_) = map(json.loads, (folder / "ppo" / "samples.jsonl").read_text().splitlines())
    assert first.keys() >= columns
    tables = [json.loads(path.read_text()) for path in (folder / "wandb").rglob("samples_*.json")]
    (*sampled, evaluated) = sorted(tables, key=lambda table: "policy" in table["columns"])
    assert sampled, "the table of PPO grows while it trains"
    assert all(columns <= {*table["columns"]} for table in sampled)
    assert columns | {"policy", "headline"} <= {*evaluated["columns"]}
    assert len(evaluated["data"]) == 6 * 4, "a row for each policy's answer"
    assert len((folder / "answers" / "answers.jsonl").read_text().splitlines()) == 6, (
        "a row for each prompt, and no other"
    )
    assert "wandb sync" in capsys.readouterr().out


def test_checkpointing_and_accumulation_and_full_precision_get_through(home):
    settings = (
        "ppo.gradient_checkpointing=true",
        "sft.gradient_checkpointing=true",
        "reward.gradient_checkpointing=true",
    )
    batches = ("ppo.per_device_train_batch_size=2", "ppo.gradient_accumulation_steps=4", "ppo.num_mini_batches=2")
    assert run("large", *OWN, *settings, *batches, "model.quantization=none") == 0


def test_a_model_folder_of_ones_own_stands_in_for_the_embedded_base(home, checkpoint):
    assert run("own-model", *OWN, "--model", str(checkpoint.model)) == 0
    settings = record(home / "runs" / "own-model" / "translation", "evaluate")["settings"]
    assert settings["model.name"] == str(checkpoint.model)
    assert not any(key.startswith("base.") for key in settings)


def test_a_job_runs_no_stage_that_it_was_not_asked_for(home):
    assert run("one", *OWN, command="sft") == 0
    assert times(home / "runs" / "one" / "translation").keys() == {"sft"}
