"""An export answers as the run did, in a fresh process that knows nothing of rlrecipes."""

import json
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import SMALLEST, main, resealed, sentences, write_rows
from safetensors.torch import load_file, save_file

from rlrecipes.after.card import _results
from rlrecipes.after.finished import find_finished_run
from rlrecipes.errors import UserError
from rlrecipes.recipe import load_recipe
from rlrecipes.run.folder import Run
from rlrecipes.run.stages import POLICIES

NF4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
MESSAGES = [[{"role": "user", "content": f"Translate: {text}"}] for text in ("Das Kind liest.", "Wer da?", "🙂 gut")]


@pytest.fixture(scope="module")
def exported(session_home, apart):
    """`runs/apart/translation/export`, both policies' answers by our own code, and what the console said."""
    import contextlib
    import io

    from rlrecipes.after.chat import load_voice
    from rlrecipes.recipe import Message

    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as out:
        patch.chdir(session_home)
        assert main(["export", "translation", "--run", "apart", "--merged"]) == 0
        voice = load_voice(find_finished_run(Run("apart", "translation"), load_recipe("translation")), 0.0)
        answers = {
            policy: [voice.answer(policy, tuple(Message(**m) for m in given), print).text for given in MESSAGES]
            for policy in ("base", "sft", "ppo")
        }
    return apart / "export", answers, out.getvalue()


def fresh(code, cwd):
    """What a Python process without rlrecipes prints."""
    refuse = "import sys; sys.modules['rlrecipes'] = None\n"
    given = subprocess.run([sys.executable, "-c", refuse + code], cwd=cwd, capture_output=True, text=True)
    assert given.returncode == 0, given.stderr
    return given.stdout.splitlines()[-1]


def card_code(folder):
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.S)
    return code


def test_the_cards_own_code_gives_the_policys_answers_in_a_fresh_process(exported, session_home):
    folder, answers, _ = exported
    assert len({tuple(given) for given in answers.values()}) == 3, "or the test would not see a lost adapter"
    asked = f"import json; print(json.dumps([answer(messages) for messages in {MESSAGES!r}]))"
    assert json.loads(fresh(card_code(folder) + asked, session_home)) == answers["ppo"]


AVX512_BF16 = "import bitsandbytes.nn.modules\nbitsandbytes.nn.modules.has_avx512bf16 = lambda: True\n"
"""Makes any processor one on which bitsandbytes repacks 4-bit layers when they first evaluate."""


def test_the_cards_own_code_runs_on_every_processor_at_widths_that_64_does_not_divide(tmp_path, monkeypatch):
    from rlrecipes.after.chat import load_voice
    from rlrecipes.model.adapters import adapter

    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)
    monkeypatch.chdir(tmp_path)  # its embedded base is none of the others'
    write_rows(tmp_path / "pairs.jsonl", sentences(60))
    command = ["sft", "translation", "--run", "width-160", "--data", "pairs.jsonl", *SMALLEST, "base.hidden_size=160"]
    assert main([*command, "base.num_attention_heads=5"]) == 0
    assert main(["export", "translation", "--run", "width-160", "--policy", "sft"]) == 0
    voice = load_voice(find_finished_run(Run("width-160", "translation"), load_recipe("translation")), 0.0)
    ids = torch.arange(5, 15)[None]
    with adapter(voice.model, "reference"):
        expected = voice.model(input_ids=ids).logits[0, -1]
    code = card_code(tmp_path / "runs" / "width-160" / "translation" / "export")
    asked = "with torch.no_grad():\n    print(model(input_ids=torch.arange(5, 15)[None]).logits[0, -1].tolist())"
    found = torch.tensor(json.loads(fresh(f"{AVX512_BF16}{code}\n{asked}", tmp_path)))
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


class Echo:
    """A model that says what it was asked."""

    device = "cpu"

    def generate(self, input_ids, attention_mask, max_new_tokens):
        assert max_new_tokens == 6
        self.asked = input_ids[0].tolist()
        return torch.cat([input_ids, input_ids], 1)


def card_reads(folder, made):
    """The tokenizer that training has of one, and the scope of the card's functions, with that of its adapter."""
    from transformers import AutoTokenizer

    from rlrecipes.after.card import LOAD
    from rlrecipes.model.tokens import load_tokenizer

    made.save_pretrained(folder)
    tokenizer = load_tokenizer(folder)
    tokenizer.save_pretrained(folder / "adapter")
    scope = {"re": re, "torch": torch, "model": Echo(), "tokenizer": AutoTokenizer.from_pretrained(folder / "adapter")}
    (code,) = re.findall(r"\ndef read.*?\n\nprint", LOAD, re.S)
    exec(code.removesuffix("print").replace("{tokens}", "6"), scope)
    return tokenizer, scope


def test_the_cards_own_code_asks_a_family_that_thinks_and_dates_as_training_did(tmp_path):
    import importlib.util
    from pathlib import Path

    from conftest import tiny_tokenizer

    from rlrecipes.model.template import prompt_text
    from rlrecipes.model.tokens import encode_prompt
    from rlrecipes.recipe import Message

    templates = Path(importlib.util.find_spec("trl").origin).parent / "chat_templates"
    for family in ("qwen3", "glm4moe", "llama3_2", "gemma", "gptoss"):
        made = tiny_tokenizer(chat_template=(templates / f"{family}.jinja").read_text())
        tokenizer, scope = card_reads(tmp_path / family, made)
        chat = (Message("system", "Be kind."), Message("user", "Hi"))
        ids = tokenizer(prompt_text(tokenizer, chat), add_special_tokens=False)["input_ids"]
        expected = tokenizer.decode(ids, skip_special_tokens=True).strip()
        assert scope["answer"]([message._asdict() for message in chat]) == expected
        for text in ("Hi<end>", "<pad>Hi<assistant><end> there"):  # a turn that spells a special token means its text
            scope["answer"]([{"role": "user", "content": text}])
            assert scope["model"].asked == encode_prompt(tokenizer, (Message("user", text),))


INST = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }} {{ eos_token }}{{ bos_token }}{% endif %}{% endfor %}"
)


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("template", [INST, INST.replace("}[INST] {", "}{")])
def test_the_cards_own_code_puts_spaces_where_training_did_in_a_family_with_sentencepiece(tmp_path, legacy, template):
    from tokenizers import SentencePieceBPETokenizer
    from transformers import LlamaTokenizer

    from rlrecipes.model.tokens import encode_prompt
    from rlrecipes.recipe import Message

    trained = SentencePieceBPETokenizer()
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words = ["[INST] Hello there, a cat. [/INST] Once upon a time."] * 20
    trained.train_from_iterator(words, vocab_size=400, special_tokens=special, show_progress=False)
    model = json.loads(trained.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    made = LlamaTokenizer(model["vocab"], merges, legacy=legacy, chat_template=template)
    tokenizer, scope = card_reads(tmp_path, made)
    for text in ("Hello there", " a  cat", "Hello</s> there", "<s>a<s>", "</s> \na cat."):
        said = (Message("user", "Hello"), Message("assistant", "Once upon"), Message("user", text))
        for chat in (said[2:], said, said[:2]):
            scope["answer"]([message._asdict() for message in chat])
            assert scope["model"].asked == encode_prompt(tokenizer, chat), (text, len(chat))


def test_the_export_can_be_moved_and_loads_by_itself(exported, tmp_path):
    """`AutoPeftModelForCausalLM` finds the base beside the adapter, from within the folder."""
    folder, _, _ = exported
    moved = shutil.copytree(folder, tmp_path / "moved")
    code = (
        "from peft import AutoPeftModelForCausalLM as Auto; import torch\n"
        "from transformers import AutoModelForCausalLM\n"
        "ids = torch.arange(5, 15)[None]\n"
        "with torch.no_grad():\n"
        "    a, b = (m.eval()(input_ids=ids).logits for m in (Auto.from_pretrained('adapter'), "
        "AutoModelForCausalLM.from_pretrained('merged')))\n"
        "print(float((a - b).abs().max() / a.abs().max()))"
    )
    assert float(fresh(code, moved)) < 1e-4


def test_what_was_measured_of_the_merged_weights_is_said_on_the_console_and_in_the_card(exported):
    folder, _, out = exported
    for text in (out, (folder / "README.md").read_text(encoding="utf-8")):
        assert re.search(r"differ from those of the adapter on the unquantized base\s+by at most \d\.\de-0[5-9]", text)
        assert re.search(r"of 6 held-out prompts, [0-6] get the same greedy answer from the merged weights", text)


def test_merged_weights_that_are_not_the_adapters_are_not_exported(home, apart, monkeypatch, capsys):
    monkeypatch.setattr("peft.tuners.lora.model.LoraModel.merge_and_unload", lambda self, **_: self.unload())
    before = (apart / "export" / "README.md").read_bytes() if (apart / "export").exists() else None
    assert main(["export", "translation", "--run", "apart", "--merged"]) == 2
    assert "nothing was exported" in capsys.readouterr().err
    after = (apart / "export" / "README.md").read_bytes() if (apart / "export").exists() else None
    assert after == before
    assert not (apart / ".export").exists()


def test_answers_end_as_training_had_it_whatever_the_base_says(exported):
    generation = json.loads((exported[0] / "adapter" / "generation_config.json").read_text())
    assert generation["do_sample"] is False
    assert generation["repetition_penalty"] == 1.0
    assert "max_new_tokens" not in generation, "a server would take it for the most that anybody may ask for"
    assert (generation["eos_token_id"], generation["pad_token_id"]) == (1, 0)
    assert json.loads((exported[0] / "merged" / "generation_config.json").read_text()) == generation


def test_the_card_has_data_licence_results_and_settings(exported):
    card = (exported[0] / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlibrary_name: peft\n")
    assert "license:" not in card.partition("---\n\n")[0], "the licence of the user's data is not known"
    assert "`pairs.jsonl`. Its licence is not known here" in card
    done = json.loads((exported[0].parent / "evaluate" / "done.json").read_text())
    chrf = done["metrics"]["ppo"]["chrf"]
    assert f"{chrf['value']:.3f} [{chrf['low']:.3f}, {chrf['high']:.3f}]" in card
    assert "ppo.total_episodes = 16" in card
    assert "| reward model | trained here, pairwise |" in card
    assert "Das 5" not in card, "rows of the user's data stay with the user"
    assert "`reward` is what PPO climbed." in card
    for others, said in (
        ({}, "PPO would climb"),
        ({"rloo": {}}, "RLOO climbed"),
        ({"ppo": {}, "grpo": {}}, "PPO and GRPO climbed"),
    ):
        finished = SimpleNamespace(records={"evaluate": done, **others}, table=POLICIES)
        assert f"`reward` is what {said}." in _results(finished, "sft")[1]


def test_the_hub_reads_the_cards_metrics_and_what_they_are_of(home, apart):
    import dataclasses

    from huggingface_hub import ModelCard

    from rlrecipes.after.card import card

    finished = find_finished_run(Run("apart", "translation"), load_recipe("translation"))
    front = ModelCard(card(finished, "ppo", None, None, apart / "export")).data
    metrics = finished.records["evaluate"]["metrics"]["ppo"]
    assert {result.metric_type: result.metric_value for result in front.eval_results} == {
        name: found["value"] for name, found in metrics.items()
    }
    assert front.metrics == [*metrics]
    assert "base_model" not in front.to_dict(), "the embedded base is not on the hub"
    assert front.datasets is None, "nor is a file of the user's"

    records = json.loads(json.dumps(finished.records))
    records["sft"]["settings"]["model.name"] = "some/model"
    records["sft"]["data"] |= {"source": "hub:a/b", "hub": [{"id": "a/b", "licence": "MIT"}]}
    records["evaluate"]["metrics"]["ppo"] = {
        "chrf": metrics["chrf"] | {"value": float("nan")},
        "reward": metrics["reward"],
    }
    records["evaluate"]["style"]["ppo"] |= {"language_de": {"value": 0.9}, "language_en": {"value": 0.09}}
    front = ModelCard(card(dataclasses.replace(finished, records=records), "ppo", None, None, apart / "export")).data
    assert (front.base_model, front.to_dict()["base_model_relation"]) == ("some/model", "adapter")
    assert front.datasets == ["a/b"]
    assert front.language == ["de"]
    assert [(each.metric_type, each.dataset_type) for each in front.eval_results] == [("reward", "a/b")]


def test_the_card_has_the_pages_at_weights_and_biases(home, apart):
    from rlrecipes.after.card import card

    finished = find_finished_run(Run("apart", "translation"), load_recipe("translation"))
    assert "no page" in card(finished, "ppo", None, None, apart / "export")
    finished.records["ppo"]["wandb"] = "https://wandb.ai/me/rlrecipes/runs/abc"
    assert "[ppo](https://wandb.ai/me/rlrecipes/runs/abc)" in card(finished, "ppo", None, None, apart / "export")


def test_a_card_on_the_hub_loads_from_the_hub(home, apart):
    from rlrecipes.after.card import card

    finished = find_finished_run(Run("apart", "translation"), load_recipe("translation"))
    text = card(finished, "ppo", None, "me/policy", apart / "export")
    assert 'adapter = snapshot_download("me/policy")' in text
    assert "runs/apart" not in text


def test_a_card_shows_the_last_part_of_a_path_though_what_was_there_is_gone_and_hub_ids_as_they_are(home, apart):
    import dataclasses

    from rlrecipes.after.card import card

    finished = find_finished_run(Run("apart", "translation"), load_recipe("translation"))
    records = json.loads(json.dumps(finished.records))

    def shown(source, model):
        records["sft"]["data"]["source"] = records["ppo"]["settings"]["data.source"] = source
        records["reward"]["reward_model"] = {"name": model}
        records["ppo"]["settings"]["reward.model"] = model
        return card(dataclasses.replace(finished, records=records), "ppo", None, None, apart / "export")

    text = shown("gone/private/rows.jsonl", "gone/private/translation/reward")
    assert "private" not in text
    assert "`rows.jsonl`. Its licence" in text
    assert 'data.source = "rows.jsonl"' in text
    assert "| reward model | `reward`, taken as it was |" in text
    text = shown("hub:wmt/wmt14@abc", "someone/rm")
    assert 'data.source = "hub:wmt/wmt14@abc"' in text
    assert 'reward.model = "someone/rm"' in text


def test_without_an_evaluation_the_card_says_how_to_get_one(home, apart):
    import dataclasses

    from rlrecipes.after.card import card

    finished = find_finished_run(Run("apart", "translation"), load_recipe("translation"))
    records = {stage: record for stage, record in finished.records.items() if stage != "evaluate"}
    bare = dataclasses.replace(finished, records=records)
    assert "`python -m rlrecipes evaluate translation --run apart`" in card(bare, "sft", None, None, apart / "export")


def test_a_model_of_ones_own_is_named_and_not_copied(home, checkpoint, tmp_path, hub):
    """A base whose vocabulary lacks the pad token, without a chat template: both come with the export."""
    from conftest import SHORTEST, tiny_tokenizer

    plain = tiny_tokenizer(pad_token=None, chat_template=None)
    model = shutil.copytree(checkpoint.model, tmp_path / "model")
    for path in model.glob("*token*"):
        path.unlink()
    (model / "chat_template.jinja").unlink(missing_ok=True)
    plain.save_pretrained(model)
    given = ["--run", "named", "--data", "pairs.jsonl", "--model", str(model), *SHORTEST]
    assert main(["sft", "translation", *given]) == 0
    folder = home / "runs" / "named" / "translation"
    path = folder / "sft" / "adapter" / "adapter_model.safetensors"
    torch.manual_seed(0)
    save_file({k: v.normal_(std=0.3) if "lora_B" in k else v for k, v in load_file(path).items()}, path)
    resealed(folder / "sft")
    assert main(["export", "translation", "--run", "named", "--merged"]) == 0
    assert not (folder / "export" / "base").exists()
    config = json.loads((folder / "export" / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(model)
    card = (folder / "export" / "README.md").read_text(encoding="utf-8")
    assert str(tmp_path) not in card
    assert "The base model is `model`." in card
    assert fresh(card_code(folder / "export") + "\nprint(base, len(tokenizer))", home) == f"{model} 261"
    from transformers import AutoTokenizer

    size = json.loads((folder / "export" / "merged" / "config.json").read_text())["vocab_size"]
    assert AutoTokenizer.from_pretrained(folder / "export" / "merged").pad_token_id < size
    assert main(["export", "translation", "--run", "named", "--merged", "--push", "me/policy"]) == 0
    texts = [path for path in (folder / "export").rglob("*") if path.suffix in (".json", ".md", ".jinja")]
    assert len(texts) > 5
    assert not [path for path in texts if str(tmp_path) in path.read_text(encoding="utf-8")]


def test_a_base_of_quantized_weights_alone_cannot_be_merged_into(home, apart, monkeypatch, capsys):
    base = find_finished_run(Run("apart", "translation"), load_recipe("translation")).base_model()
    four_bit = shutil.copytree(base, home / "four_bit", dirs_exist_ok=True)
    config = json.loads((four_bit / "config.json").read_text())
    (four_bit / "config.json").write_text(json.dumps({**config, "quantization_config": NF4}))
    monkeypatch.setattr("rlrecipes.after.finished.FinishedRun.base_model", lambda self: str(four_bit))
    assert main(["export", "translation", "--run", "apart", "--merged"]) == 2
    assert "quantized weights alone" in capsys.readouterr().err


# What stands in the way.


@pytest.fixture
def spoilt(home, apart):
    """`runs/spoilt/translation`, to be changed."""
    folder = home / "runs" / "spoilt" / "translation"
    yield shutil.copytree(apart, folder)
    shutil.rmtree(folder.parent)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("adapter_config.json", b"{"),
        ("adapter_config.json", None),
        ("adapter_model.safetensors", b"\x08\0\0\0\0\0\0\0{"),
        ("adapter_model.safetensors", None),
    ],
)
def test_a_damaged_or_missing_file_of_a_stage_is_told_with_the_command_that_makes_it_again(
    spoilt, capsys, file, content
):
    path = spoilt / "ppo" / "adapter" / file
    path.unlink() if content is None else path.write_bytes(content)
    assert main(["export", "translation", "--run", "spoilt"]) == 2
    err = capsys.readouterr().err
    wrong = "is missing; " if content is None else "is damaged (it has "
    assert err.startswith(f"error: runs/spoilt/translation/ppo/adapter/{file} {wrong}")
    assert err.endswith("; make its stage again with `python -m rlrecipes ppo translation --run spoilt --force`\n")
    assert not (spoilt / ".export").exists()


def test_damaged_samples_are_told_before_the_work(spoilt, monkeypatch, capsys):
    (spoilt / "evaluate" / "samples.jsonl").write_text("{")
    monkeypatch.setattr("rlrecipes.after.export._adapter", lambda *_: pytest.fail("it began"))
    assert main(["export", "translation", "--run", "spoilt"]) == 2
    err = capsys.readouterr().err
    assert re.search(r"evaluate/samples.jsonl is damaged \(.*\); make its stage again with `python -m rl", err)


def test_a_file_in_the_exports_place_is_told_and_left_alone(spoilt, capsys):
    shutil.rmtree(spoilt / "export", ignore_errors=True)
    (spoilt / "export").write_text("mine")
    assert main(["export", "translation", "--run", "spoilt"]) == 2
    assert "runs/spoilt/translation/export is a file, and" in capsys.readouterr().err
    assert (spoilt / "export").read_text() == "mine"


def test_an_earlier_export_outlives_a_kill_at_any_moment_of_being_replaced(spoilt, monkeypatch):
    """Killed: nothing runs any more, neither `finally` nor what would be tidied."""
    from pathlib import Path

    class Killed(BaseException):
        pass

    def calls(function, at):
        def call(path, *arguments, **options):
            if Path(path).parent == Path("runs/spoilt/translation"):
                made.append(path)
                if len(made) >= at:
                    raise Killed
            return function(path, *arguments, **options)

        return call

    given = ["export", "translation", "--run", "spoilt", "--policy", "sft"]
    assert main(given) == 0
    for at in range(1, 99):
        made = []
        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", calls(Path.rename, at))
            patch.setattr(shutil, "rmtree", calls(shutil.rmtree, at))
            try:
                assert main(given) == 0
                break
            except Killed:
                pass
        with monkeypatch.context() as patch:
            patch.setattr(
                "rlrecipes.after.export._adapter", lambda *_: (_ for _ in ()).throw(UserError("not this time"))
            )
            assert main(given) == 2
        assert (spoilt / "export" / "README.md").exists(), f"lost at call {at}"
    assert at > 4
    assert sorted(path.name for path in spoilt.iterdir() if "export" in path.name) == ["export"]


# The hub.


class FakeApi:
    """Remembers what it was told; a name in `fails` raises."""

    def __init__(self, fails=()):
        self.fails, self.told = fails, []

    def __call__(self):
        return self

    def _tell(self, name, *what):
        self.told.append((name, *what))
        if name in self.fails:
            raise OSError(f"{name} failed\nand more")

    def whoami(self):
        self._tell("whoami")
        return {"name": "me", "orgs": [{"name": "us"}]}

    def create_repo(self, repo_id, private, exist_ok):
        self._tell("create_repo", repo_id, private, exist_ok)
        return f"https://hub/{repo_id}"

    def create_commit(self, repo_id, operations, commit_message):
        self._tell("create_commit", repo_id, sorted(operation.path_in_repo for operation in operations))


@pytest.fixture
def hub(monkeypatch):
    import huggingface_hub

    api = FakeApi()
    monkeypatch.setattr(huggingface_hub, "HfApi", api)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "token")
    monkeypatch.setattr("rlrecipes.hub.push._unreachable", lambda: None)
    return api


def pushed(capsys, name="us/policy"):
    status = main(["export", "translation", "--run", "apart", "--push", name])
    return status, capsys.readouterr()


def test_a_push_uploads_the_export_in_one_commit_with_the_adapter_at_the_top(home, apart, hub, capsys):
    status, given = pushed(capsys)
    assert status == 0
    assert "uploaded: https://hub/us/policy" in given.out
    names = [call[0] for call in hub.told]
    assert names == ["whoami", "create_repo", "create_commit"]
    assert hub.told[1] == ("create_repo", "us/policy", True, True)
    files = hub.told[2][2]
    assert {"README.md", "adapter_config.json", "adapter_model.safetensors", "base/config.json"} <= set(files)
    assert not any(path.startswith("adapter/") for path in files)


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (lambda patch, hub: patch.setattr("huggingface_hub.get_token", lambda: None), "run `.venv/bin/hf auth login`"),
        (
            lambda patch, hub: patch.setattr("rlrecipes.hub.push._unreachable", lambda: "no route"),
            "cannot be reached (no route)",
        ),
        (lambda patch, hub: setattr(hub, "fails", ("whoami",)), "does not take your login (whoami failed)"),
    ],
)
def test_a_push_that_cannot_succeed_is_refused_before_the_work(home, apart, hub, monkeypatch, capsys, broken, said):
    broken(monkeypatch, hub)
    monkeypatch.setattr("rlrecipes.after.export.export", lambda *_: pytest.fail("it would have exported"))
    status, given = pushed(capsys)
    assert status == 2
    assert said in given.err
    assert given.err.count("\n") == 1


def test_a_push_to_a_stranger_is_refused(home, apart, hub, capsys):
    status, given = pushed(capsys, "them/policy")
    assert status == 2
    assert "you are no member of 'them' on the hub; there are me, us" in given.err


def test_an_upload_that_fails_is_told_and_the_export_stays(home, apart, hub, capsys):
    hub.fails = ("create_commit",)
    status, given = pushed(capsys)
    assert status == 2
    assert "the upload to us/policy failed (create_commit failed)" in given.err
    assert (apart / "export" / "README.md").exists()


def test_a_hub_that_does_not_answer_is_not_waited_for(monkeypatch):
    import threading

    import huggingface_hub

    from rlrecipes.hub import push as upload

    asked = threading.Event()
    monkeypatch.setattr(upload, "SECONDS", 0.01)
    monkeypatch.setattr(huggingface_hub, "get_session", lambda: asked.wait(10))
    assert "no answer within 0.01 s" in upload._unreachable()
    asked.set()


def test_a_run_that_can_only_be_read_is_exported_elsewhere(finished, session_home, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(session_home)
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    monkeypatch.setattr("os.access", lambda *_: False)
    command = ["export", "translation", "--run", "t", "--policy", "sft"]
    assert main(command) == 2
    assert "nothing can be written into" in (said := capsys.readouterr().err)
    assert "TO=" in said or "--to" in said
    for _ in range(2):  # the second takes the place of the first
        assert main([*command, "--to", str(tmp_path / "there" / "mine")]) == 0
    assert (tmp_path / "there" / "mine" / "adapter" / "adapter_config.json").is_file()
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["mine"]
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


@pytest.mark.parametrize("where", ["its own place", "elsewhere", "a first one"])
def test_a_file_that_no_export_wrote_is_not_deleted_with_an_export(spoilt, tmp_path, monkeypatch, capsys, where):
    place = tmp_path / "mine" if where == "elsewhere" else spoilt / "export"
    command = ["export", "translation", "--run", "spoilt", "--policy", "sft"]
    command += ["--to", str(place)] if where == "elsewhere" else []
    shutil.rmtree(place, ignore_errors=True)
    if where != "a first one":
        assert main(command) == 0
    (place / "adapter").mkdir(parents=True, exist_ok=True)
    (place / "adapter" / "mine.txt").write_text("years of work")
    with monkeypatch.context() as patch:
        patch.setattr("rlrecipes.after.export._adapter", lambda *_: pytest.fail("it began"))
        assert main(command) == 2
    assert re.search(
        r"holds adapter/mine\.txt, which the export did not write .*; move it away", capsys.readouterr().err
    )
    (place / "adapter" / "mine.txt").rename(tmp_path / "away")
    assert main(command) == 0
    assert main(command) == 0
    (place / "manifest.json").unlink()  # an export of earlier days
    assert main(command) == 0


def test_a_file_that_comes_while_an_export_is_written_is_not_deleted(spoilt, monkeypatch, capsys):
    from rlrecipes.after.export import replaced

    def write(draft, place):
        draft.mkdir()
        (place / "mine.txt").write_text("mine")

    shutil.rmtree(spoilt / "export", ignore_errors=True)
    (spoilt / "export").mkdir()
    with pytest.raises(UserError, match=r"export holds mine\.txt, which the export did not write"):
        replaced(spoilt, "export", None, "a", write)
    assert [path.name for path in (spoilt / "export").iterdir()] == ["mine.txt"]


def test_an_export_replaces_nothing_but_an_export(finished, session_home, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(session_home)
    (tmp_path / "letters").write_text("dear")
    assert main(["export", "translation", "--run", "t", "--to", str(tmp_path)]) == 2
    assert "holds something else than an export; name another folder" in capsys.readouterr().err
    assert (tmp_path / "letters").read_text() == "dear"
