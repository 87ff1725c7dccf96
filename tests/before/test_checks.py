"""What a machine cannot do, and what does not belong together, is found before anything is trained."""

import json
import shutil
import sys
from collections.abc import Sequence

import pytest
import torch
from conftest import SHORTEST, SMALLEST, main, resealed, sentences, tiny_tokenizer, write_rows
from transformers import RobertaConfig, RobertaForSequenceClassification, Trainer, TrainingArguments
from transformers.training_args import OptimizerNames

from rlrecipes.before import checks
from rlrecipes.errors import UserError
from rlrecipes.model.tokens import vocabulary
from rlrecipes.pipeline import prepare
from rlrecipes.profile import load_profile, profile_names
from rlrecipes.run.checkpoint import load_newest, save
from rlrecipes.run.circumstances import versions


@pytest.fixture
def refused(home, monkeypatch, capsys):
    """Runs a command that must fail before it trains anything, the base included; returns its sentence."""
    monkeypatch.setattr(
        "rlrecipes.model.pretrain.embedded_base", lambda *arguments: pytest.fail("it would have trained")
    )

    def run(*settings: str, without: Sequence[str] = ()) -> str:
        shutil.rmtree(home / "runs" / "checks", ignore_errors=True)
        smallest = [setting for setting in SMALLEST if setting not in without]
        assert main(["run", "translation", "--run", "checks", "--data", "pairs.jsonl", *smallest, *settings]) == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
        assert not (home / "runs" / "checks").exists()
        return line

    return run


def test_4_bit_without_bitsandbytes(refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    said = refused()
    assert "model.quantization=nf4 needs bitsandbytes, which is not installed" in said
    assert "model.quantization=none" in said


def test_4_bit_with_a_bitsandbytes_that_cannot_be_loaded(refused, monkeypatch):
    class Broken:
        def find_spec(self, name, path=None, target=None):
            if name == "bitsandbytes":
                raise OSError("libcudart.so.12: cannot open shared object file")

    monkeypatch.delitem(sys.modules, "bitsandbytes")
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    assert "cannot be loaded (libcudart.so.12: cannot open shared object file)" in refused()


def test_4_bit_without_a_kernel_for_the_device(refused, monkeypatch):
    import bitsandbytes

    def no_kernel(*arguments, **keywords):
        raise NotImplementedError("no kernel for this device.\nmore")

    monkeypatch.setattr(bitsandbytes, "matmul_4bit", no_kernel)
    assert "does not work with this bitsandbytes on cpu (no kernel for this device)" in refused()


def test_4_bit_with_a_kernel_that_gives_wrong_numbers(refused, monkeypatch):
    import bitsandbytes

    monkeypatch.setattr(bitsandbytes, "matmul_4bit", lambda a, b, **keywords: torch.zeros_like(a))
    assert "it gives wrong numbers" in refused()


def test_an_8_bit_optimizer_without_bitsandbytes(refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    said = refused("model.quantization=none", "ppo.optim=paged_adamw_8bit")
    assert "ppo.optim=paged_adamw_8bit needs bitsandbytes" in said
    assert "ppo.optim=adamw_torch" in said


@pytest.mark.parametrize("name", [str(name.value) for name in OptimizerNames])
def test_an_optimizer_that_passes_takes_steps_and_goes_on_from_a_checkpoint_and_any_other_is_refused(name, tmp_path):
    state = torch.get_rng_state()
    try:
        checks.check_device(load_profile("tiny", [f"reward.optim={name}"]))
        said = None
    except UserError as error:
        said = str(error)
    if said is not None:
        assert said.startswith(f"reward.optim={name} cannot be used here (")
        assert said.endswith("; set reward.optim=adamw_torch, or install what it needs")
        assert len(said) < 300
        return
    assert torch.equal(torch.get_rng_state(), state), "a check draws nothing"

    def made():
        weight = torch.nn.Parameter(torch.linspace(-1, 1, 8192).reshape(128, 64))
        arguments = TrainingArguments(str(tmp_path), optim=name, use_cpu=True, report_to="none", learning_rate=1e-3)
        kind, keywords = Trainer.get_optimizer_cls_and_kwargs(arguments, torch.nn.ParameterList([weight]))
        return weight, kind([weight], **keywords)

    def step(weight, optimizer):
        (weight**4).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    whole, resumed = made(), made()
    for _ in range(3):
        step(*whole)
    for _ in range(2):
        step(*resumed)
    save(tmp_path / "checkpoints", 2, {"weight": resumed[0].data, "optimizer": resumed[1].state_dict()})
    resumed, newest = made(), load_newest(tmp_path / "checkpoints").state
    resumed[0].data.copy_(newest["weight"])
    resumed[1].load_state_dict(newest["optimizer"])
    step(*resumed)
    assert not torch.equal(whole[0], made()[0])
    assert torch.equal(whole[0], resumed[0])


def test_the_optimizers_of_the_profiles_can_be_made():
    for profile in map(load_profile, profile_names()):
        for table in (profile.sft, profile.reward, profile.ppo):
            checks._check_optimizer("optim", table.optim, "another")


def test_a_library_that_is_missing_has_no_version(monkeypatch):
    monkeypatch.setattr("rlrecipes.run.circumstances.LIBRARIES", ("torch", "a-library-that-nobody-has"))
    assert versions()["a-library-that-nobody-has"] == "none"


def test_bfloat16_on_a_card_without_it(refused, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    monkeypatch.setattr("rlrecipes.run.determinism._multiply", lambda: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    said = refused("model.dtype=bfloat16")
    assert "model.dtype=bfloat16 needs a card that computes in it, which Tesla T4 does not" in said
    assert "model.dtype=float32" in said


def test_attention_that_the_model_does_not_have(checkpoint, home, monkeypatch, capsys):
    from transformers import LlamaForCausalLM

    monkeypatch.setattr(LlamaForCausalLM, "_supports_sdpa", False)
    command = ["sft", "translation", "--run", "sdpa", "--data", "pairs.jsonl", "--model", str(checkpoint.model)]
    assert main([*command, *SHORTEST, "model.attention=sdpa"]) == 2
    assert "model.attention=sdpa is not there for" in capsys.readouterr().err


def test_a_reward_model_of_another_vocabulary(finished, home, capsys):
    folder = home / "runs" / "words"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(finished, folder / "translation")
    for stage in ("ppo", "answers", "evaluate", "report"):
        shutil.rmtree(folder / "translation" / stage)
    path = folder / "translation" / "reward" / "done.json"
    done = json.loads(path.read_text())
    assert done["vocabulary"]
    path.write_text(json.dumps(done | {"vocabulary": "another"}))
    resealed(path.parent)
    assert main(["ppo", "translation", "--run", "words", "--data", "pairs.jsonl", *SMALLEST]) == 2
    said = capsys.readouterr().err
    assert "reads other tokens than the tokenizer of" in said
    assert not (folder / "translation" / "ppo").exists()
    path.write_text(json.dumps(done))
    assert main(["ppo", "translation", "--run", "words", "--data", "pairs.jsonl", *SMALLEST]) == 0


def test_a_vocabulary_is_the_ids_of_all_tokens_and_of_the_end():
    assert vocabulary(tiny_tokenizer()) == vocabulary(tiny_tokenizer())
    assert vocabulary(tiny_tokenizer()) != vocabulary(tiny_tokenizer(eos_token="<user>"))


def test_what_this_machine_can_do_passes():
    checks.check_device(load_profile("tiny", ["model.dtype=bfloat16", "sft.optim=paged_adamw_8bit"]))


def test_a_check_raises_the_projects_own_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError):
        checks.check_device(load_profile("tiny"))


def test_what_only_the_memory_of_a_gpu_needs_is_refused_on_a_cpu_unless_the_profile_has_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"memory\.halve_on_oom=true would have no effect on a CPU"):
        checks.check_device(load_profile("tiny", ["memory.halve_on_oom=true"]))
    with pytest.raises(UserError, match=r"memory\.card=24 would have no effect on a CPU, which has none"):
        checks.check_device(load_profile("tiny", ["memory.card=24"]))
    checks._check_memory(load_profile("single_gpu_24gb", ["memory.card=24"]))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    checks._check_memory(load_profile("tiny", ["memory.halve_on_oom=true", "memory.card=24"]))


@pytest.mark.parametrize(
    ("setting", "rows"),
    [
        ("sft.patience=5", "50 demonstrations"),
        ("reward.patience=5", "50 comparisons"),
        ("ppo.eval_every=2", "50 prompts"),
        ("ppo.patience=2", "50 prompts"),
    ],
)
def test_a_setting_of_rows_that_are_set_aside_is_refused_where_none_can_be(refused, setting, rows):
    said = refused(setting)
    assert f"error: {setting} would have no effect: of {rows} none can be set aside for it, which takes 200" in said


def test_such_settings_pass_where_rows_are_set_aside_or_the_profile_has_them_or_their_stage_does_not_run(home):
    write_rows(home / "three-hundred.jsonl", sentences(300))
    chosen = ["sft.patience=5", "reward.patience=5", "ppo.patience=2", "ppo.eval_every=2"]
    many = prepare("translation", load_profile("tiny", chosen), data="three-hundred.jsonl")
    checks.check_aside(many, ["sft", "reward", "ppo"])
    few = prepare("translation", load_profile("tiny", chosen), data="pairs.jsonl")
    checks.check_aside(few, ["answers", "evaluate", "report"])
    for profile, *overrides in (("tiny",), ("own",), ("tiny", "sft.keep=last"), ("tiny", "ppo.eval_every=0")):
        job = prepare("translation", load_profile(profile, overrides), data="pairs.jsonl")
        checks.check_aside(job, ["sft", "reward", "ppo"])


def test_a_reward_model_with_code_of_its_own_is_refused_before_sft(checkpoint, refused, tmp_path):
    shutil.copytree(checkpoint.model, tmp_path / "own")
    kinds = {"architectures": ["OwnForSequenceClassification"], "id2label": {"0": "score"}, "model_type": "own"}
    config = json.loads((tmp_path / "own" / "config.json").read_text())
    auto_map = {"auto_map": {"AutoConfig": "own.Own"}}
    (tmp_path / "own" / "config.json").write_text(json.dumps(config | kinds | auto_map))
    trained = [setting for setting in SMALLEST if setting.startswith("reward.max_steps")]
    said = refused(f"reward.model={tmp_path / 'own'}", without=trained)
    assert f"error: reward.model={tmp_path / 'own'} cannot be used: " in said


def test_a_reward_model_too_short_for_every_row_is_refused_before_sft_whatever_counts_its_positions(refused, tmp_path):
    """RoBERTa counts them from behind the padding's id: of 26 positions 24 are left."""
    tokenizer = tiny_tokenizer(chat_template=None)
    tokenizer.save_pretrained(tmp_path / "rm")
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = RobertaConfig(vocab_size=len(tokenizer), max_position_embeddings=26, num_labels=1, pad_token_id=1, **sizes)
    RobertaForSequenceClassification(config).save_pretrained(tmp_path / "rm")
    trained = [setting for setting in SMALLEST if setting.startswith("reward.max_steps")]
    said = refused(f"reward.model={tmp_path / 'rm'}", without=trained)
    name = f"reward.model={tmp_path / 'rm'}"
    assert f"{name} reads at most 24 tokens, and all 50 demonstrations are longer; shorten the rows, or choose" in said


def test_an_adapter_of_another_chat_template_carries_no_later_stage(finished, home, capsys):
    folder = home / "runs" / "templates"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(finished, folder / "translation")
    for stage in ("ppo", "answers", "evaluate", "report"):
        shutil.rmtree(folder / "translation" / stage)
    path = folder / "translation" / "sft" / "adapter" / "chat_template.jinja"
    path.write_text(path.read_text() + " ")
    resealed(folder / "translation" / "sft")
    assert main(["ppo", "translation", "--run", "templates", "--data", "pairs.jsonl", *SMALLEST]) == 2
    said = capsys.readouterr().err
    assert "translation/sft was trained on prompts of another chat template than" in said
    assert not (folder / "translation" / "ppo").exists()


def test_a_model_that_takes_no_score_head_is_refused_before_sft(checkpoint, home, monkeypatch, capsys):
    from transformers import LlamaForSequenceClassification

    init = LlamaForSequenceClassification.__init__

    def another(self, config):
        init(self, config)
        self.pooler = torch.nn.Linear(2, 2)

    monkeypatch.setattr(LlamaForSequenceClassification, "__init__", another)
    command = ["sft", "translation", "--run", "headless", "--data", "pairs.jsonl", "--model", str(checkpoint.model)]
    assert main([*command, *SHORTEST]) == 2
    assert "takes no score head: its weights pooler.weight would be random under it" in capsys.readouterr().err
    assert not (home / "runs" / "headless" / "translation" / "sft").exists()
