"""Metrics by encoders in folders: BERTScore is the library's and COMET its command's; what is missing is told."""

import json
import os
import shutil
import sys
from types import SimpleNamespace

import pytest
from conftest import SMALLEST, main

from rlrecipes.before.checks import check_encoders
from rlrecipes.errors import UserError
from rlrecipes.policy.neural import neural
from rlrecipes.policy.scores import Scored
from rlrecipes.profile import EvaluateSettings
from rlrecipes.recipe import Example, user

EXAMPLES = [
    Example(user("Translate: Die Katze"), ("the cat", "a cat")),
    Example(user("Translate: Ja")),
    Example(user("Translate: Der\nHund"), ("the dog",)),
]
STAND_IN = """#!{python}
import json, os, sys
told = dict(zip(sys.argv[1:], sys.argv[2:]))
if os.environ["HF_HUB_OFFLINE"] != "1" or not told["--model"].endswith("model.ckpt"):
    sys.exit("no model")
given = sys.argv[sys.argv.index("-t") + 1 : sys.argv.index("-r")]
read = lambda path: open(path, encoding="utf-8").read().splitlines()
rows = zip(read(told["-s"]), read(told["-r"]))
json.dump({{path: [{{"COMET": len(mt) / len(ref), "src": src}} for mt, (src, ref) in zip(read(path), rows_)]
           for rows_ in [list(rows)] for path in given}}, open(told["--to_json"], "w"))
print("scores", read(told["-s"]))
"""


def job(**settings):
    profile = SimpleNamespace(evaluate=EvaluateSettings(**settings))
    return SimpleNamespace(profile=profile, recipe=SimpleNamespace(prefix="Translate: "))


def said(*texts):
    given = [SimpleNamespace(text=text) for text in texts]
    return Scored(given, given, [], [], [], None, {})


@pytest.fixture
def encoder(tmp_path):
    """A random BERT of letters."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    letters = list("abcdefghijklmnopqrstuvwxyz")
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    BertTokenizer(vocab={name: i for i, name in enumerate(names)}).save_pretrained(tmp_path)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(names), hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64
    )
    BertModel(config).save_pretrained(tmp_path)
    return tmp_path


def test_bertscore_is_the_librarys_best_f1_over_references_and_0_for_silence(encoder, capsys):
    library = pytest.importorskip("bert_score")
    settings = EvaluateSettings(bertscore=str(encoder))
    check_encoders(settings)
    found = neural(
        job(bertscore=str(encoder)), {"sft": said("a cat", "no", ""), "ppo": said("cats", "x", "a dog")}, EXAMPLES
    )
    scorer = library.BERTScorer(str(encoder), 3, device="cpu", use_fast_tokenizer=True)
    scorer._tokenizer.model_max_length = 500
    *_, f1 = scorer.score(["cats", "a dog"], [["the cat", "a cat"], ["the dog"]])
    assert found["ppo"]["bertscore"]["value"] == pytest.approx(f1.mean().item(), abs=1e-5)
    assert found["sft"]["bertscore"]["value"] == pytest.approx(0.5, abs=1e-5)
    assert "on 2 prompts with references" in capsys.readouterr().out
    long = neural(job(bertscore=str(encoder)), {"sft": said("cat " * 600, "no", "a dog")}, EXAMPLES)
    assert 0 < long["sft"]["bertscore"]["value"] <= 1


def test_bertscore_puts_a_space_before_a_text_where_the_encoder_is_roberta(tmp_path, monkeypatch):
    """So did the library when its authors chose the layers; " cat" and "cat" are different tokens there."""
    library = pytest.importorskip("bert_score")
    from tokenizers import pre_tokenizers
    from transformers import RobertaConfig, RobertaModel, RobertaTokenizer

    names = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = RobertaTokenizer(vocab={name: i for i, name in enumerate(names)}, merges=[])
    tokenizer.save_pretrained(tmp_path)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    RobertaModel(RobertaConfig(vocab_size=len(names), **sizes)).save_pretrained(tmp_path)
    asked = []

    class Told(library.BERTScorer):
        def score(self, said, *rest, **options):
            asked.append(self._tokenizer.encode("cat"))
            return super().score(said, *rest, **options)

    monkeypatch.setattr(library, "BERTScorer", Told)
    neural(job(bertscore=str(tmp_path)), {"sft": said("a cat", "no", "a dog")}, EXAMPLES)
    assert asked == [tokenizer.encode(" cat")]


@pytest.fixture
def command(tmp_path, monkeypatch):
    """A stand-in for COMET's command, with its arguments and its file of scores."""
    program = tmp_path / "bin" / "comet-score"
    program.parent.mkdir()
    program.write_text(STAND_IN.format(python=sys.executable))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    checkpoint = tmp_path / "comet" / "checkpoints" / "model.ckpt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    return checkpoint


def test_comet_scores_every_policys_answers_by_its_command(command):
    for place in (command, command.parents[1]):
        check_encoders(EvaluateSettings(comet=str(place)))
        scored = {"sft": said("the cat", "no", "the\ndog"), "ppo": said("", "no", "the dog the dog")}
        found = neural(job(comet=str(place)), scored, EXAMPLES)
        assert {name: each["comet"]["value"] for name, each in found.items()} == {
            "sft": 1.0,
            "ppo": pytest.approx(15 / 14, abs=1e-6),
        }


def test_an_evaluation_holds_comets_scores_among_its_metrics_and_the_verdict_does_not_rest_on_them(
    finished, home, command, capsys
):
    folder = home / "runs" / "encoded" / "translation"
    shutil.copytree(finished, folder, ignore=shutil.ignore_patterns("evaluate", "report"))
    road = ("evaluate", "translation", "--run", "encoded", "--data", "pairs.jsonl", *SMALLEST)
    assert main([*road, f"evaluate.comet={command.parent / 'none'}"]) == 2
    assert "is no checkpoint" in capsys.readouterr().err
    assert main([*road, f"evaluate.comet={command}"]) == 0
    done, before = (
        json.loads((each / "evaluate" / "done.json").read_text(encoding="utf-8")) for each in (folder, finished)
    )
    assert {name for each in done["metrics"].values() for name in each} - {*before["metrics"]["sft"]} == {"comet"}
    assert done["comparisons"] == before["comparisons"]


def test_a_command_that_gives_no_scores_is_told_with_what_it_said(command):
    other = command.with_name("other.ckpt")
    other.touch()
    with pytest.raises(UserError, match=r"gave no scores \(status 1\) and said: no model"):
        neural(job(comet=str(other)), {"sft": said("a", "b", "c")}, EXAMPLES)


def test_without_references_nothing_is_compared(command):
    with pytest.raises(UserError, match="no held-out row has one"):
        neural(job(comet=str(command)), {"sft": said("a")}, EXAMPLES[1:2])
    assert neural(job(), {"sft": said("a")}, EXAMPLES[1:2]) == {"sft": {}}


def test_what_is_not_on_this_machine_is_refused_before_anything_runs(tmp_path, command, monkeypatch):
    with pytest.raises(UserError, match=r"evaluate.comet=.*bin is no checkpoint and no folder with one"):
        check_encoders(EvaluateSettings(comet=str(tmp_path / "bin")))
    with pytest.raises(UserError, match="is no checkpoint"):
        check_encoders(EvaluateSettings(comet=str(tmp_path / "none.ckpt")))
    monkeypatch.setattr("rlrecipes.before.checks.find_spec", lambda name: name)
    with pytest.raises(UserError, match="is no folder of a model"):
        check_encoders(EvaluateSettings(bertscore="some/model"))
    monkeypatch.setattr("rlrecipes.before.checks.find_spec", lambda name: None)
    with pytest.raises(UserError, match="bert-score, which is not installed"):
        check_encoders(EvaluateSettings(bertscore=str(tmp_path)))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="the command comet-score, which is not found"):
        check_encoders(EvaluateSettings(comet=str(command)))
    check_encoders(EvaluateSettings())
