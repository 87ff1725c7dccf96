"""`run.start` says where a policy's training begins: at SFT's policy, at the base as it is, or at an adapter in a folder."""

import json
import shutil

import pytest
import torch
from conftest import SMALLEST, main, write_rows
from safetensors.torch import load_file

from rlrecipes import run_recipe
from rlrecipes.model.adapters import adapter, begin_adapter, reference
from rlrecipes.model.loading import load_causal
from rlrecipes.model.tokens import load_tokenizer
from rlrecipes.profile import LoraSettings, ModelSettings, load_profile

BASE_ALONE = [s for s in SMALLEST if not s.startswith(("sft.", "evaluate.policies"))]
GRPO = ("grpo.total_episodes=16", "grpo.per_device_train_batch_size=8", "grpo.num_iterations=2", "grpo.anyway=true")
ALONE = [s for s in BASE_ALONE if not s.startswith(("reward.", "ppo.")) or s.startswith("ppo.response_length")]
CHECKED = "def right(prompt, answer, example):\n    return float(str(example.columns['answer']) in answer)\n"


def records(folder):
    return {path.parent.name: json.loads(path.read_text()) for path in folder.glob("*/done.json")}


def sums():
    return [{"prompt": f"{a} + {b} =", "answer": a + b} for a in range(8) for b in range(9)]


def test_from_the_base_there_is_no_sft_and_all_policies_stand_against_the_base(home, capsys):
    folder, options = home / "runs" / "from-base" / "translation", ("translation", "--run", "from-base")
    begun = (*options, "--data", "pairs.jsonl", *BASE_ALONE, *GRPO, "run.start=base", "run.algorithms=ppo grpo dpo")
    small = ("ppo.value=adapter", "dpo.max_steps=2", "dpo.per_device_train_batch_size=4", "dpo.logging_steps=1")
    assert main(["run", *begun, *small]) == 0
    made = records(folder)
    assert made.keys() == {"reward", "ppo", "grpo", "dpo", "answers", "evaluate", "report"}
    assert list(made["evaluate"]["metrics"]) == ["base", "best4", "best16", "grpo", "dpo", "ppo"]
    assert list(made["evaluate"]["comparisons"]) == [
        f"{name}_over_base" for name in ("best4", "best16", "grpo", "dpo", "ppo")
    ]
    assert {"grpo", "ppo"} <= made["evaluate"]["kl"].keys(), "its divergence is that from the base"
    assert made["ppo"]["adapters"] == {"policy": "adapter", "reward": "../reward/adapter"}
    assert made["ppo"]["settings"]["run.start"] == "base"
    assert not [name for name in made["ppo"]["settings"] if name.startswith("sft.")]
    out = capsys.readouterr().out
    assert "PPO over base" in out
    assert "SFT" not in out.replace("such as SFT that was trained longer", "")
    page = (folder / "report" / "index.html").read_text()
    assert "SFT" not in page, "nor where the page says what the KL, the best of n and DPO's margins are taken from"
    assert "KL from base, nats per answer" in page

    assert main(["run", *options]) == 0
    assert capsys.readouterr().out.count("done already") == 7
    assert main(["export", *options]) == 0
    card = (folder / "export" / "README.md").read_text()
    assert "TRL, by PPO against the recipe's reward." in card
    assert "PPO over base, in pairs" in card
    assert main(["chat", *options, "--policy", "sft"]) == 2
    assert "there is no policy 'sft'; there are base, rloo, grpo, dpo, distill, ppo" in capsys.readouterr().err
    assert main(["run", *options, "run.start=sft"]) == 2
    assert 'reward was made with run.start = "base" where you now have null' in capsys.readouterr().err
    assert records(folder).keys() == made.keys(), "nothing is removed"


def test_a_fresh_adapter_leaves_the_base_as_it_is_and_the_reference_is_the_base(checkpoint):
    settings = ModelSettings(name=str(checkpoint.model), quantization="none")
    base = load_causal(str(checkpoint.model), settings, load_tokenizer(str(checkpoint.model)))
    ids = torch.arange(3, 9)[None]
    with torch.no_grad():
        bare = base(input_ids=ids).logits.clone()
        model = begin_adapter(base, None, "policy", LoraSettings(r=2)).eval()
        assert torch.equal(model(input_ids=ids).logits, bare)
        assert reference(model) is None
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.5)
        assert not torch.equal(model(input_ids=ids).logits, bare)
        with adapter(model, reference(model)):
            assert torch.equal(model(input_ids=ids).logits, bare)
    assert all(parameter.requires_grad == (".policy." in name) for name, parameter in model.named_parameters())


def test_prompts_and_a_function_that_checks_answers_are_enough_from_the_base(home, capsys):
    write_rows(home / "sums.jsonl", sums())
    (home / "checked.py").write_text(CHECKED)
    folder, options = home / "runs" / "prompts-alone" / "text_generation", ("text_generation", "--run", "prompts-alone")
    asked = ("run.start=base", "reward.function=checked.py:right", "terms.learned=0", "terms.fluent=0")
    begun = (*options, "--data", "sums.jsonl", *ALONE, *GRPO[:-1], *asked, "run.algorithms=grpo", "evaluate.pass_at=4")
    assert main(["run", *begun]) == 0
    assert "The rows are prompts without answers" in capsys.readouterr().out
    made = records(folder)
    assert made.keys() == {"grpo", "answers", "evaluate", "report"}
    evaluated = made["evaluate"]
    assert evaluated["headline"] == "right"
    for policy in ("base", "grpo"):
        assert {"pass@1", "pass@4"} <= evaluated["metrics"][policy].keys()
        assert evaluated["metrics"][policy]["pass@1"]["value"] <= evaluated["metrics"][policy]["pass@4"]["value"]
    assert "pass@4_gain" in evaluated["comparisons"]["grpo_over_base"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ((), "prompts alone are enough at run.start=base with a reward.function"),
        (("run.start=base",), "learns from preferences, but sums.jsonl brings none"),
        (("run.start=base", "terms.learned=0"), "name a function that does, as reward.function=rewards.py:exact"),
        (
            ("run.start=base", "terms.learned=0", "reward.function=checked.py:right"),
            "set ppo.response_length, in tokens",
        ),
    ],
)
def test_what_prompts_alone_lack_is_told_before_anything_is_trained(settings, said, home, capsys):
    write_rows(home / "sums.jsonl", sums())
    (home / "checked.py").write_text(CHECKED)
    assert main(["show", "text_generation", "--data", "sums.jsonl", *settings]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_an_adapter_in_a_folder_takes_the_place_of_sft(finished, home, capsys):
    folder, options = home / "runs" / "from-adapter" / "translation", ("translation", "--run", "from-adapter")
    shutil.copytree(finished / "ppo" / "adapter", home / "brought", dirs_exist_ok=True)
    small = [s for s in SMALLEST if not s.startswith("sft.")]
    assert main(["run", *options, "--data", "pairs.jsonl", *small, "run.start=brought"]) == 0
    assert "taken from brought: run.start takes the place of SFT" in capsys.readouterr().out
    made = records(folder)
    assert made["sft"]["start"] == {"place": "brought"}
    ours, theirs = (
        load_file(place / "adapter_model.safetensors") for place in (folder / "sft" / "adapter", home / "brought")
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert made["ppo"]["settings"]["run.start"] == "brought"
    assert made["ppo"]["adapters"]["reference"] == "../sft/adapter"

    assert main(["export", "translation", "--run", "from-adapter", "--policy", "sft", "--to", "exported-start"]) == 0
    assert main(["export", "translation", "--run", "from-adapter"]) == 0
    card = (folder / "export" / "README.md").read_text()
    assert "made with rlrecipes on TRL, begun at an adapter from elsewhere, by PPO against the recipe's reward." in card
    assert "supervised" not in card + (home / "exported-start" / "README.md").read_text()
    assert "brought, in the place of SFT" in (folder / "report" / "index.html").read_text()
    again = ("--run", "from-export", "--data", "pairs.jsonl", *small, "run.start=exported-start")
    assert main(["sft", "translation", *again]) == 0, "an export has its own copy of the embedded base"
    assert main(["export", "translation", "--run", "from-export"]) == 0, "its base is found"
    capsys.readouterr()

    assert main(["sft", "translation", "--run", "of-a-run", "--data", "pairs.jsonl", *small, "run.start=runs/t"]) == 0
    assert "taken from runs/t/translation/ppo/adapter" in capsys.readouterr().out, "a run's last policy"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"use_dora": True}, "is more than a LoRA adapter"),
        ({"bias": "all"}, "is more than a LoRA adapter"),
        ({"init_lora_weights": "pissa"}, "is more than a LoRA adapter"),
        ({"alora_invocation_tokens": [1, 2]}, "is more than a LoRA adapter"),
        (
            {"lora_alpha": 7},
            "has lora_alpha 7, and the reward model beside it lora.lora_alpha=32; set lora.lora_alpha=7",
        ),
        ({"target_modules": ["q_proj"]}, "; set lora.target_modules=q_proj"),
        ({"use_rslora": True}, "was scaled by rsLoRA"),
    ],
)
def test_an_adapter_that_would_be_another_function_here_is_refused(changed, said, finished, home, capsys):
    brought = shutil.copytree(finished / "sft" / "adapter", home / "changed", dirs_exist_ok=True)
    config = json.loads((brought / "adapter_config.json").read_text())
    (brought / "adapter_config.json").write_text(json.dumps(config | changed))
    small = [s for s in SMALLEST if not s.startswith("sft.")]
    options = ("--run", "changed-start", "--data", "pairs.jsonl")
    assert main(["sft", "translation", *options, *small, "run.start=changed"]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("how", ["damaged", "of another rank", "without weights", "of modules that are not there"])
def test_nobody_is_told_to_delete_what_an_unfit_adapter_lies_in(how, finished, home, capsys):
    brought = shutil.copytree(finished / "sft" / "adapter", home / "unfit", dirs_exist_ok=True)
    config = json.loads((brought / "adapter_config.json").read_text())
    if how == "damaged":
        (brought / "adapter_model.safetensors").write_bytes(b"no tensors")
    elif how == "without weights":
        (brought / "adapter_model.safetensors").unlink()
    else:
        changed = {"r": 3} if how == "of another rank" else {"target_modules": ["c_attn"]}
        (brought / "adapter_config.json").write_text(json.dumps(config | changed))
    small = [s for s in SMALLEST if not s.startswith(("sft.", "reward.", "ppo.anyway", "lora."))]
    options = ("--run", "unfit-start", "--data", "pairs.jsonl", "terms.learned=0")
    assert main(["sft", "translation", *options, *small, "run.start=unfit"]) == 2
    shutil.copytree(finished, home / "runs" / "unfit-compared" / "translation", dirs_exist_ok=True)
    compared = ("--run", "unfit-compared", "evaluate.policies=sft,unfit", "--force")
    assert main(["answers", "translation", *compared]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "run.start=unfit cannot be taken (" in errors[0]
    assert "evaluate.policies: unfit cannot be taken (" in errors[1]
    for error in errors:
        assert "name another adapter, or save this one anew" in error
        assert "delete" not in error


def test_an_adapters_settings_are_refused_where_none_is_made(finished, home, capsys):
    small = [s for s in SMALLEST if not s.startswith(("sft.", "reward.", "ppo.anyway", "lora."))]
    options = ("translation", "--run", "no-lora", "--data", "pairs.jsonl", *small, "run.start=runs/t")
    assert main(["sft", *options, "terms.learned=0", "lora.r=8"]) == 2
    assert "lora.r=8 has no effect where run.start=runs/t brings the adapter" in capsys.readouterr().err
    taken = ("reward.model=runs/t/translation/reward", "lora.lora_dropout=0.2")
    assert main(["sft", *options, *taken]) == 2
    assert "lora.lora_dropout=0.2 has no effect" in capsys.readouterr().err
    assert main(["sft", *options, "terms.learned=0"]) == 0
    assert main(["sft", *options, "--run", "trained-beside", "lora.lora_dropout=0.2"]) == 0, "the reward model reads it"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (("run.start=bsae",), "run.start: there is no folder 'bsae'; did you mean 'base'?"),
        (("run.start=empty",), "the folder empty holds no adapter_config.json and no finished run of translation"),
        (
            ("run.start=runs/bad-start/translation/mine",),
            "is in this run, runs/bad-start/translation, itself; name another run",
        ),
        (("run.start=base", "sft.max_steps=3"), "sft.max_steps=3 has no effect where run.start=base takes the place"),
        (
            ("run.start=base", "evaluate.policies=sft ppo"),
            "evaluate.policies names sft, and run.start=base does without",
        ),
        (("run.start=runs/t/translation/reward/adapter",), "is no policy: its adapter was trained for SEQ_CLS"),
        (("run.start=runs/t", "lora.r=8"), "has rank 16, and the reward model beside it lora.r=8; set lora.r=16"),
        (("run.start=alien",), "stands on 'somebody/else', and this run on"),
    ],
)
def test_a_start_that_cannot_be_is_one_sentence(settings, said, finished, home, capsys):
    (home / "empty").mkdir(exist_ok=True)
    shutil.copytree(finished / "sft" / "adapter", home / "alien", dirs_exist_ok=True)
    config = json.loads((home / "alien" / "adapter_config.json").read_text())
    (home / "alien" / "adapter_config.json").write_text(
        json.dumps(config | {"base_model_name_or_path": "somebody/else"})
    )
    own = home / "runs" / "bad-start" / "translation"
    shutil.copytree(finished / "sft" / "adapter", own / "mine", dirs_exist_ok=True)
    small = [s for s in SMALLEST if not s.startswith("sft.")]
    assert main(["run", "translation", "--run", "bad-start", "--data", "pairs.jsonl", *small, *settings]) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(error) == 1
    assert said in error[0]


def test_the_stage_that_the_base_does_without_is_refused_by_name(home, capsys):
    assert main(["sft", "translation", "--run", "no-sft", "--data", "pairs.jsonl", "run.start=base"]) == 2
    assert "run.start=base begins at the model as it is; leave out the stage 'sft'" in capsys.readouterr().err


def test_python_begins_at_the_base_too(home):
    profile = load_profile("tiny", [*BASE_ALONE, "run.start=base"])
    made = run_recipe("translation", profile, data="pairs.jsonl", run="python-base")
    assert "sft" not in made
    assert "ppo_over_base" in made["evaluate"]["comparisons"]
