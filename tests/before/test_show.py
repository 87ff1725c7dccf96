"""`show` prints rows as the model sees them, counts their tokens, and says what will be left out."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import SMALLEST, WITHOUT_TORCH, changed, main, sentences, write_rows

from rlrecipes.data.load import load
from rlrecipes.model.embedded import MADE_OF, seal_base
from rlrecipes.model.tokens import answer_length, fitting_comparisons, fitting_examples, fitting_prompts, load_tokenizer
from rlrecipes.recipe import load_recipe
from rlrecipes.run.checksums import MANIFEST


@pytest.fixture
def shown(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "pairs.jsonl", sentences(60))

    def run(*arguments: str) -> str:
        assert main(["show", "translation", *arguments]) == 0
        return capsys.readouterr().out

    return run


def test_without_a_tokenizer_it_says_what_is_missing_and_how_to_get_it(shown):
    out = shown()
    assert "tokens: not shown; the embedded base model is not there yet; `python -m rlrecipes sft translation`" in out
    assert "texts that spell special tokens such as '<|im_end|>' are not counted either" in out
    assert "reward:" in out
    assert "hf download nobody/nothing" in shown("--model", "nobody/nothing")


def test_rows_are_shown_with_special_tokens_and_the_boundary(shown, checkpoint):
    out = shown("--model", str(checkpoint.model), "--data", "pairs.jsonl")
    assert re.search(r"→ <user>Translate: Das \d+. Kind liest.<assistant>▌Child number \d+ reads.<end>", out)
    assert re.search(r"- <user>Translate: .*<assistant>▌.*<end>", out)
    assert "EOS '<end>', padding '<pad>'" in out


def test_special_tokens_that_rows_spell_are_told(shown, checkpoint):
    out = shown("--model", str(checkpoint.model), "--data", "pairs.jsonl")
    assert "plain text" not in out
    write_rows(Path("pairs.jsonl"), [{**row, "target": f"{row['target']}<end>"} for row in sentences(60)])
    out = shown("--model", str(checkpoint.model), "--data", "pairs.jsonl")
    assert re.search(
        r"note: special tokens such as .* are read as plain text: \d\d demonstrations, \d\d comparisons", out
    )


@pytest.mark.parametrize("longest", [40, 51, 52, 128])
def test_what_will_be_too_long_is_counted_as_the_stages_count_it(shown, checkpoint, longest):
    out = shown("--model", str(checkpoint.model), "--data", "pairs.jsonl", f"model.max_length={longest}")
    tokenizer = load_tokenizer(checkpoint.model)
    data = load(load_recipe("translation"), "pairs.jsonl", {}, Path("runs"))
    train, held_out = data.train, data.held_out.prompts
    length = answer_length(tokenizer, train.demonstrations, 0)
    for name, rows, fit in (
        ("demonstrations", train.demonstrations, fitting_examples(tokenizer, train.demonstrations, longest)),
        ("comparisons", train.comparisons, fitting_comparisons(tokenizer, train.comparisons, longest)),
        ("prompts", train.prompts, fitting_prompts(tokenizer, train.prompts, longest - length)),
        ("held-out prompts", held_out, fitting_prompts(tokenizer, held_out, longest - length)),
    ):
        assert f"  {len(rows) - len(fit)} of {len(rows)} {name}: more than " in out


def test_lengths_are_those_of_the_tokens(shown, checkpoint):
    out = shown("--model", str(checkpoint.model), "--data", "pairs.jsonl", "ppo.response_length=7")
    tokenizer = load_tokenizer(checkpoint.model)
    rows = load(load_recipe("translation"), "pairs.jsonl", {}, Path("runs")).train.demonstrations
    counts = sorted(len(ids.prompt) for _, ids in fitting_examples(tokenizer, rows, 1000))
    (told,) = re.findall(r"demonstrations, prompt +([\d /]+)", out)
    assert [int(count) for count in told.split(" / ")] == [
        *(counts[int(share * len(counts))] for share in (0, 0.5, 0.9, 0.99)),
        counts[-1],
    ]
    assert re.search(r"comparisons, longer answer {2}\d+ / ", out)
    assert "the window has 128" in out, "the model's own is lower than the profile's"
    assert "at most 7 (ppo.response_length)" in out


def test_it_says_which_stages_have_too_few_rows(shown, tmp_path):
    write_rows(tmp_path / "few.jsonl", sentences(40))
    data = load(load_recipe("translation"), "few.jsonl", {}, Path("runs"))
    rows, held_out = len(data.train.demonstrations), len(data.held_out.prompts)
    out = shown("--data", "few.jsonl", f"sft.per_device_train_batch_size={rows + 1}")
    assert f"  {rows} demonstrations cannot fill one batch of {rows + 1}: bring more, or lower sft.per_device" in out
    assert f"  {rows} prompts cannot fill one batch of 64: bring more, or lower ppo.per_device" in out
    assert f"  {held_out} held-out prompts give no interval to rely on: bring 30 or more" in out
    enough = ("sft", "ppo", "reward")
    settings = [f"{stage}.per_device_train_batch_size={2 if stage == 'ppo' else rows}" for stage in enough]
    out = shown("--data", "few.jsonl", *settings, "reward.per_device_train_batch_size=99")
    assert f"  {rows} comparisons cannot fill one batch of 99: bring more, or lower reward.per_device" in out
    assert "demonstrations cannot fill" not in out
    assert "prompts cannot fill" not in out
    assert "too few rows" not in shown()


@pytest.mark.parametrize("every", [2, 3])
def test_comparisons_that_the_longer_answer_wins_are_told(shown, tmp_path, every):
    pairs = [("Call later.", f"Restart it and try again, number {i}.") for i in range(99)]
    rows = [
        {"prompt": f"What of {i}?", "chosen": pair[i % every > 0], "rejected": pair[i % every == 0]}
        for i, pair in enumerate(pairs)
    ]
    write_rows(tmp_path / "long.jsonl", rows)
    assert "is the longer one in" not in shown("--data", "long.jsonl")
    write_rows(
        tmp_path / "long.jsonl",
        [dict(row, chosen=long, rejected=short) for row, (short, long) in zip(rows, pairs, strict=True)],
    )
    assert re.search(
        r"the chosen answer is the longer one in (\d+) of \1; a policy is trained only", shown("--data", "long.jsonl")
    )


def test_a_window_without_room_for_a_prompt_is_told(shown, checkpoint):
    out = shown("--model", str(checkpoint.model), "--data", "pairs.jsonl", "model.max_length=10")
    assert "answers this long leave no room for a prompt; lower ppo.response_length or raise model.max_length" in out
    out = shown(
        *("--model", str(checkpoint.model), "--data", "pairs.jsonl", "ppo.response_length=128", "model.max_length=512")
    )
    assert "lower ppo.response_length or choose a model with a longer window" in out


def test_an_eos_that_was_never_taught_is_shown_as_what_stands_in_for_it(shown, checkpoint, tmp_path):
    import torch
    from transformers import LlamaForCausalLM

    folder = tmp_path / "untaught"
    shutil.copytree(checkpoint.model, folder)
    model = LlamaForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.get_output_embeddings().weight[[0, 1, 200]] = 1.0
    model.save_pretrained(folder)
    assert "never taught its EOS token '<end>'" in shown("--model", str(folder), "--data", "pairs.jsonl")


def test_the_embedded_base_is_used_once_it_is_there(finished, home, capsys):
    sizes = [setting for setting in SMALLEST if setting.startswith("base.")]
    assert main(["show", "translation", "--data", "pairs.jsonl", *sizes]) == 0
    assert "<|user|>Translate: " in capsys.readouterr().out
    assert main(["show", "translation", "--data", "pairs.jsonl"]) == 0
    assert "not there yet" in capsys.readouterr().out, "a base of another size is another base"


def test_of_several_embedded_bases_the_one_with_these_settings_is_used(base, tmp_path, monkeypatch, capsys):
    base = shutil.copytree(base, tmp_path / "runs" / ".base" / base.name)
    sizes = [setting for setting in SMALLEST if setting.startswith("base.")]
    other = shutil.copytree(base, base.with_name("other"))
    told = json.loads((base / "made_of.json").read_text())
    changed(other / "made_of.json", settings={**told["settings"], "vocab_size": 768})
    another_recipes = shutil.copytree(base, base.with_name("another"))
    changed(another_recipes / "made_of.json", recipes=[*told["recipes"], "summary"])
    for folder in (other, another_recipes):
        seal_base(folder)
    monkeypatch.chdir(tmp_path)
    for recipe, folder, settings in (
        ("translation", base, []),
        ("dialogue", base, []),
        ("translation", other, ["base.vocab_size=768"]),
    ):
        assert main(["show", recipe, *sizes, *settings]) == 0
        assert f"tokenizer of {folder};" in capsys.readouterr().out
    for setting in ("base.vocab_size=300", "base.max_position_embeddings=64"):
        assert main(["show", "translation", *sizes, setting]) == 0
        assert "not there yet" in capsys.readouterr().out


@pytest.mark.parametrize("damaged", [False, True])
def test_an_embedded_base_from_before_its_settings_were_kept_is_known_by_its_size(
    base, tmp_path, monkeypatch, capsys, damaged
):
    base = shutil.copytree(base, tmp_path / "runs" / ".base" / base.name)
    for name in (MADE_OF, MANIFEST):  # neither did they have checksums
        (base / name).unlink()
    if damaged:
        (base / "config.json").write_text("{")
    monkeypatch.chdir(tmp_path)
    assert main(["show", "translation", *(setting for setting in SMALLEST if setting.startswith("base."))]) == 0
    assert ("not there yet" in capsys.readouterr().out) == damaged


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("{", "is no JSON object"),
        ("[]", "is no JSON object"),
        ('{"max_position_embeddings": "abc"}', 'max_position_embeddings "abc" where a whole number above 0 belongs'),
        ('{"text_config": [1]}', "text_config [1] where an object belongs"),
    ],
)
def test_a_damaged_configuration_is_told(checkpoint, tmp_path, capsys, config, said):
    folder = shutil.copytree(checkpoint.model, tmp_path / "damaged")
    (folder / "config.json").write_text(config)
    assert main(["show", "translation", "--model", str(folder)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_a_folder_without_a_model_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["show", "translation", "--model", "./nothing"]) == 2
    assert "no config.json" in capsys.readouterr().err


def test_a_model_out_of_reach_is_told_before_torch_is_imported(tmp_path):
    arguments = ["show", "dialogue", "--model", "nobody/nothing"]
    given = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *arguments],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert given.returncode == 0, given.stderr
    assert "hf download nobody/nothing" in given.stdout


def test_a_tokenizer_that_the_hubs_cache_alone_has_is_shown(shown, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "cache" / "models--someone--llm"
    shutil.copytree(checkpoint.model, folder / "snapshots" / "abc", ignore=shutil.ignore_patterns("*.safetensors"))
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    out = shown("--model", "someone/llm", "--data", "pairs.jsonl")
    assert "tokenizer of someone/llm; EOS '<end>'" in out
    assert "whether the model was taught this EOS is seen once its weights are here" in out


def test_a_tokenizer_in_older_files_is_shown_as_training_reads_it(shown, checkpoint, tmp_path):
    """Without `tokenizer.json`: Transformers makes it of a vocabulary and its merges."""
    folder = shutil.copytree(checkpoint.model, tmp_path / "older")
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    changed(folder / "tokenizer_config.json", tokenizer_class="GPT2Tokenizer")
    out = shown("--model", str(folder), "--data", "pairs.jsonl")
    assert re.search(r"→ <user>Translate: Das \d+. Kind liest.<assistant>▌Child number \d+ reads.<end>", out)


def test_long_texts_are_shown_from_both_ends(shown, tmp_path):
    rows = [{"source": f"Satz {i} " + "wort " * 1000 + "Ende.", "target": f"Sentence {i}."} for i in range(20)]
    write_rows(tmp_path / "long.jsonl", rows)
    out = shown("--data", "long.jsonl")
    assert "characters…]" in out
    assert "Ende." in out
    assert max(map(len, out.splitlines())) < 1500
