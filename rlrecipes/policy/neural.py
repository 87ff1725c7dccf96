"""Metrics by encoders of other people, from folders on this machine: BERTScore, and COMET by its own command.

{"ppo": {"bertscore": {"value": 0.94, "low": 0.93, "high": 0.95}, "comet": {"value": 0.81, …}}, …}

COMET 2.2.7 asks for Transformers below 5 and NumPy below 2, so it lives in an environment of its own and gets files.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from rlrecipes.errors import UserError
from rlrecipes.job import Job
from rlrecipes.metrics import mean_interval
from rlrecipes.model.forward import device
from rlrecipes.policy.scores import Estimate, Scored
from rlrecipes.recipe import Example
from rlrecipes.run.console import say
from rlrecipes.text import shortened


def neural(job: Job, scored: Mapping[str, Scored], examples: Sequence[Example]) -> dict[str, dict[str, Estimate]]:
    """The scores of `evaluate.bertscore` and `evaluate.comet` of the greedy answers, by policy; of prompts with references.

    Raises:
        UserError: no prompt has a reference, or a model cannot be used.
    """
    settings = job.profile.evaluate
    found: dict[str, dict[str, Estimate]] = {name: {} for name in scored}
    if not (settings.bertscore or settings.comet):
        return found
    places = [i for i, example in enumerate(examples) if example.answers]
    if not places:
        raise UserError("evaluate.bertscore and evaluate.comet compare with references, and no held-out row has one")
    kept = [examples[i] for i in places]
    answers = {name: [each.greedy[i].text for i in places] for name, each in scored.items()}
    for metric, place, score in (("bertscore", settings.bertscore, bertscore), ("comet", settings.comet, comet)):
        if place:
            say(f"  {metric} by {place}, on {len(places)} prompts with references")
            asked = [example.prompt[-1].content.removeprefix(job.recipe.prefix) for example in kept]
            for name, values in score(
                Path(os.path.expanduser(place)), answers, asked, kept, settings.batch_size
            ).items():
                found[name][metric] = mean_interval(values).as_json()
    return found


Texts = Mapping[str, Sequence[str]]
"""Each policy's answers."""
Values = dict[str, list[float]]
"""A score for each of them."""


def bertscore(
    folder: Path, answers: Texts, asked: Sequence[str], examples: Sequence[Example], batch_size: int
) -> Values:
    """BERTScore's F1 (Zhang et al. 2020, arXiv 1904.09675) against the best reference, not rescaled; 0 for an empty answer.

    The layer is the one that the library's authors chose for a model of the folder's name, else the last. Texts are cut at
    the encoder's length.

    Raises:
        UserError: the library cannot open the folder.
    """
    from bert_score import BERTScorer
    from bert_score.utils import model2layers
    from transformers import AutoConfig, AutoTokenizer, GPT2Tokenizer, RobertaTokenizer

    layers = {name.rpartition("/")[2]: layer for name, layer in model2layers.items()}
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        layer = layers.get(folder.name) or config.num_hidden_layers
        scorer = BERTScorer(str(folder), layer, device=str(device()), use_fast_tokenizer=True)
        # The library cuts texts where the tokenizer says, which may say nothing; RoBERTa's places start at 2. The space that
        # it asks RoBERTa's tokenizer to put before a text is lost in Transformers 5.
        limits = {"model_max_length": min(scorer._tokenizer.model_max_length, config.max_position_embeddings - 2)}
        spaced = isinstance(scorer._tokenizer, GPT2Tokenizer | RobertaTokenizer)
        options = limits | ({"add_prefix_space": True} if spaced else {})
        scorer._tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **options)
    except Exception as error:  # whatever a library says of a stranger's files
        raise UserError(f"evaluate.bertscore={folder} cannot be opened: {shortened(str(error), 120)}") from error
    found = {}
    for name, texts in answers.items():
        said = [i for i, text in enumerate(texts) if text.strip()]
        values = [0.0] * len(texts)
        if said:
            references = [list(examples[i].answers) for i in said]
            *_, f1 = scorer.score([texts[i] for i in said], references, batch_size=batch_size)
            for i, value in zip(said, f1.tolist(), strict=True):
                values[i] = value
        found[name] = values
    return found


def comet(folder: Path, answers: Texts, asked: Sequence[str], examples: Sequence[Example], batch_size: int) -> Values:
    """COMET's score of each answer (Rei et al. 2020, arXiv 2009.09025) by `comet-score`, against the first reference.

    Raises:
        UserError: the command fails, or gives no scores.
    """
    checkpoint = folder if folder.is_file() else next(iter(sorted(folder.rglob("*.ckpt"))))
    with tempfile.TemporaryDirectory() as made:
        parts = {"sources": asked, "references": [example.answers[0] for example in examples]}
        parts |= {f"policy{i}": texts for i, texts in enumerate(answers.values())}
        files = {part: Path(made) / part for part in parts}
        for part, texts in parts.items():
            files[part].write_text("".join(f"{' '.join(text.split())}\n" for text in texts), encoding="utf-8")
        names = [str(file) for part, file in files.items() if part.startswith("policy")]
        told = Path(made) / "scores.json"
        command = ["comet-score", "-s", files["sources"], "-t", *names, "-r", files["references"], "--to_json", told]
        command += ["--model", checkpoint, "--batch_size", str(batch_size), "--quiet", "--only_system"]
        command += ["--gpus", str(int(torch.cuda.is_available()))]
        ended = subprocess.run(
            list(map(str, command)), capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"}
        )
        try:
            rows: dict[str, list[dict[str, Any]]] = json.loads(told.read_text(encoding="utf-8"))
            return {
                policy: [float(row["COMET"]) for row in rows[name]] for policy, name in zip(answers, names, strict=True)
            }
        except (OSError, ValueError, KeyError, TypeError):
            said = next((line for line in reversed(ended.stderr.splitlines()) if line.strip()), "nothing")
            raise UserError(
                f"evaluate.comet: comet-score gave no scores (status {ended.returncode}) and said: {shortened(said, 120)}"
            ) from None
