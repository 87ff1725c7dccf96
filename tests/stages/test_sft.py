"""The embedded base is measured on the demonstrations before it is trained: text that it cannot know is told."""

from __future__ import annotations

import pytest
import torch
from conftest import SMALLEST, main

from rlrecipes.model.loading import load_causal
from rlrecipes.model.tokens import Encoded, load_tokenizer
from rlrecipes.profile import ModelSettings
from rlrecipes.stages import sft


@pytest.mark.parametrize("known", [True, False])
def test_text_that_is_worse_than_a_guess_is_told_with_the_way_out(checkpoint, capsys, known):
    tokenizer = load_tokenizer(checkpoint.model)
    base = load_causal(str(checkpoint.model), ModelSettings(), tokenizer)
    rows = []
    for start in range(20, 200):
        ids = [start, 7]
        for _ in range(6):
            with torch.no_grad():
                logits = base(torch.tensor([ids], device=base.device)).logits[0, -1]
            ids.append(int(logits.argmax() if known else logits.argmin()))
        rows.append(Encoded(ids[:2], ids[2:]))
    sft._tell_unknown(base, rows, len(tokenizer))
    out = capsys.readouterr().out
    assert ("the embedded base cannot know such text" in out) != known
    assert ("name a model" in out) != known


def test_only_the_embedded_base_is_measured_on_the_rows_that_it_learns(home, checkpoint, monkeypatch):
    seen = []
    monkeypatch.setattr(sft, "_tell_unknown", lambda base, rows, vocabulary: seen.append((len(rows), vocabulary)))
    sizes = [setting for setting in SMALLEST if not setting.startswith("base.")]
    assert (
        main(["sft", "translation", "--run", "own", "--data", "pairs.jsonl", "--model", str(checkpoint.model), *sizes])
        == 0
    )
    assert seen == []
    assert main(["sft", "translation", "--run", "known", "--data", "pairs.jsonl", *SMALLEST]) == 0
    ((rows, vocabulary),) = seen
    assert 30 < rows < 60
    assert vocabulary == 2048
