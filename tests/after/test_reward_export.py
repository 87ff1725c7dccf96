"""An exported reward model scores as the run's does, in a process that knows nothing of rlrecipes."""

import json
import re
import shutil
import subprocess
import sys

import pytest
from conftest import changed, main

from rlrecipes.model.tokens import open_tokenizer
from rlrecipes.profile import ModelSettings
from rlrecipes.recipe import user
from rlrecipes.reward.model import load_sharing
from rlrecipes.reward.source import find_reward_model

TEXTS = [("Translate: Das Kind liest.", "The child reads."), ("Wer da?", ""), ("🙂", "Größe, said twice.\nTwice.")]


def own_scores(place):
    """What the run's reward model gives `TEXTS`, on the unquantized base."""
    base = json.loads((place / "sft" / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"]
    settings = ModelSettings(quantization="none", dtype="float32")
    model = load_sharing(find_reward_model(str(place / "reward")), base, settings, open_tokenizer(base))
    return model.scores([model.encode(user(prompt), answer) for prompt, answer in TEXTS], 1)


def test_the_cards_own_code_gives_the_same_scores_in_a_fresh_process(finished, home):
    assert main(["export", "translation", "--run", "t", "--policy", "reward"]) == 0
    folder = finished / "export-reward"
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.S)
    chats = [[{"role": "user", "content": p}, {"role": "assistant", "content": a}] for p, a in TEXTS]
    asked = f"\nimport json; print(json.dumps([score(chat) for chat in {chats!r}]))"
    refuse = "import sys; sys.modules['rlrecipes'] = None\n"
    done = subprocess.run([sys.executable, "-c", refuse + code + asked], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    scores = own_scores(finished)
    assert len({round(score, 4) for score in scores}) == len(TEXTS), "or the test would not see one text from another"
    assert json.loads(done.stdout.splitlines()[-1]) == pytest.approx(scores, abs=1e-4)
    shutil.rmtree(folder)


def test_a_batch_of_several_lengths_scores_as_alone(finished, home):
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    assert main(["export", "translation", "--run", "t", "--policy", "reward"]) == 0
    folder = finished / "export-reward"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    chats = [[{"role": "user", "content": p}, {"role": "assistant", "content": a}] for p, a in TEXTS]
    texts = tokenizer.apply_chat_template(chats, tokenize=False)
    batch = tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt")
    with torch.no_grad():
        assert model(**batch).logits.squeeze(-1).tolist() == pytest.approx(own_scores(finished), abs=1e-4)
    assert model.config.num_labels == 1
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast", "Transformers 4 knows no TokenizersBackend"
    assert not isinstance(config.get("extra_special_tokens"), list)
    shutil.rmtree(folder)


def test_of_several_reward_models_the_first_is_exported_and_card_and_console_say_so(finished, home, capsys):
    place = home / "runs" / "several_exported" / "translation"
    shutil.copytree(finished, place)
    shutil.copytree(place / "reward" / "adapter", place / "reward" / "member-1" / "adapter")
    shutil.copyfile(place / "reward" / "scale.json", place / "reward" / "member-1" / "scale.json")
    members = [{"accuracy": {"value": value, "low": value, "high": value}} for value in (0.625, 0.75)]
    changed(place / "reward" / "done.json", members=members)
    assert main(["export", "translation", "--run", "several_exported", "--policy", "reward"]) == 0
    assert "the first of the run's 2 reward models" in capsys.readouterr().out
    card = (place / "export-reward" / "README.md").read_text(encoding="utf-8")
    assert "one of the 2 scores that PPO climbed together (mean; this is the first)" in card
    assert "0.625" in card


def test_what_cannot_be_exported_is_told(finished, home, capsys):
    place = home / "runs" / "no_reward" / "translation"
    shutil.rmtree(place.parent, ignore_errors=True)
    shutil.copytree(finished / "sft", place / "sft")
    assert main(["export", "translation", "--run", "no_reward", "--policy", "reward"]) == 2
    assert "has no reward model to export; make one with `" in capsys.readouterr().err
    shutil.copytree(finished / "reward", place / "reward")
    shutil.rmtree(place / "reward" / "adapter")
    record = json.loads((place / "reward" / "done.json").read_text())
    files = {name: entry for name, entry in record["files"].items() if not name.startswith("adapter/")}
    changed(place / "reward" / "done.json", reward_model={"name": "someone/rm", "beside": "someone/rm"}, files=files)
    assert main(["export", "translation", "--run", "no_reward", "--policy", "reward"]) == 2
    assert "is a whole model already: someone/rm" in capsys.readouterr().err
    assert main(["export", "translation", "--run", "t", "--policy", "reward", "--merged"]) == 2
    assert "a reward model is always merged" in capsys.readouterr().err
