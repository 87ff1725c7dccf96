"""A reward model for the world outside: `runs/<run>/<recipe>/export-reward/`, whole or not at all.

config.json, model.safetensors   a sequence classifier with one output: adapter and head merged into the unquantized base
tokenizer.json, …                its chat template ends an answer with EOS, where the score is read
README.md                        how to score an answer, and the scale of the scores

So `AutoModelForSequenceClassification.from_pretrained` and benchmarks of reward models load it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, AutoConfig, AutoModelForSequenceClassification

from rlrecipes.after.export import TOLERANCE, check_unquantized, on_device, replaced
from rlrecipes.after.finished import FinishedRun
from rlrecipes.errors import UserError
from rlrecipes.model.loading import check_model, model_config
from rlrecipes.model.template import FIXED, space_before
from rlrecipes.model.tokens import open_tokenizer
from rlrecipes.recipe import Message, Prompt, user
from rlrecipes.report.records import climbers
from rlrecipes.reward.head import load_scale, members
from rlrecipes.reward.model import Row, load_sharing, shares_base
from rlrecipes.reward.source import find_reward_model
from rlrecipes.run.console import say
from rlrecipes.run.folder import make
from rlrecipes.text import interval

CHECKED = 16
"""Answers whose scores are compared."""

ANSWERED = (
    "{% if messages[-1].role == 'assistant' %}{% set answer = messages[-1].content %}"
    "{% set messages = messages[:-1] %}{% set add_generation_prompt = true %}{% endif %}\n"
)
"""Follows `FIXED` in the exported template: a chat that ends with an answer is its prompt, and the answer behind that."""

CARD = """\
# {recipe}, reward model

A sequence classifier with one output, the score of an answer to a prompt: higher is better. Scores compare answers to one
prompt. {agreement}(score − {mean:.6g}) / {std:.6g} is {climbed}, with mean 0 and deviation 1 over the
demonstrations. Made by rlrecipes from {base}; {difference}

```python
from transformers import AutoModelForSequenceClassification, AutoTokenizer

place = "."  # this folder
tokenizer = AutoTokenizer.from_pretrained(place)
model = AutoModelForSequenceClassification.from_pretrained(place).eval()


def score(messages):
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    return model(**tokenizer(text, add_special_tokens=False, return_tensors="pt")).logits[0, 0].item()


print(score([{{"role": "user", "content": "Hello!"}}, {{"role": "assistant", "content": "Hello, what can I do?"}}]))
```
"""


def export_reward(finished: FinishedRun, elsewhere: Path | None = None) -> Path:
    """Writes a run's reward model in place of an earlier export, and returns its folder: the run's, or `elsewhere`.

    It merges in float32, in main memory (4 bytes for each parameter), and saves in the type of the base's own checkpoint.

    Raises:
        UserError: the run has no reward model, or one that is a whole model already; the base has no unquantized weights, or
            no class that `AutoModelForSequenceClassification` knows; or the merged weights score otherwise.
    """
    _check(finished)
    base = finished.base_model()
    check_model(base, finished.model)
    check_unquantized(base)
    if type(model_config(base)) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise UserError(
            f"Transformers has no sequence classifier for the family of '{base}', so nothing else could load the export; "
            "use the reward stage's folder here, as reward.model=…"
        )
    mark = "model.safetensors"
    return replaced(
        finished.run.folder, "export-reward", elsewhere, mark, lambda draft, place: _write(finished, base, draft)
    )


def _check(finished: FinishedRun) -> None:
    if not finished.learned:
        raise UserError(
            f"{finished.run.folder} has no reward model to export; make one with `{make('reward', finished.run)}`"
        )
    if not shares_base(finished.run.stage("reward")):
        name = finished.records["reward"]["reward_model"]["name"]
        raise UserError(f"the reward model of {finished.run.folder} is a whole model already: {name}; use that one")


def _write(finished: FinishedRun, base: str, draft: Path) -> None:
    say("  merging into the unquantized base")
    stage, tokenizer = finished.run.stage("reward"), open_tokenizer(base)
    settings = replace(finished.model, quantization="none", dtype="float32")
    reward = load_sharing(find_reward_model(str(stage / "adapter")), base, settings, tokenizer)
    record, count = finished.records["reward"], len(members(stage))
    who = climbers(finished.records)
    climbed = f"the score that {who} climbed"
    if count > 1:
        how = record["settings"]["reward.combine"]
        say(f"  the first of the run's {count} reward models; the others are in {stage}/member-…")
        climbed = f"one of the {count} scores that {who} climbed together ({how}; this is the first)"
    answered = _answers(finished)
    rows = [reward.cut(reward.encode(*pair)) for pair in answered]
    before = reward.scores(rows, 1)
    whole = reward.model.merge_and_unload(safe_merge=True)
    if tokenizer.pad_token_id >= whole.get_input_embeddings().num_embeddings:  # other code looks its embedding up
        whole.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    whole.config.pad_token_id = tokenizer.pad_token_id
    dtype = getattr(AutoConfig.from_pretrained(base, trust_remote_code=False), "dtype", None) or torch.float32
    whole.to(dtype).save_pretrained(draft)
    tokenizer.chat_template = ending_with_answers(tokenizer)
    tokenizer.padding_side = "right"
    tokenizer.save_pretrained(draft)
    del whole, reward
    difference = _difference(draft, dtype, rows, before)
    same = sum(_ids(tokenizer, *pair) == row["input_ids"] for pair, row in zip(answered, rows, strict=True))
    kind = str(dtype).removeprefix("torch.")
    told = (
        f"on {len(rows)} answers its scores differ from those of the adapter on the unquantized base by at most "
        f"{difference:.1e} of the largest ({kind}), and the template gives {same} of them the tokens of training."
    )
    say(f"  {told}")
    mean, std = load_scale(stage)
    accuracy = record.get("members", [record["metrics"]])[0].get("accuracy")
    agreement = (
        f"On held-out comparisons it prefers the chosen answer on {' '.join(interval(accuracy))}. " if accuracy else ""
    )
    name = "an embedded base of about a million parameters" if finished.embedded else base
    (draft / "README.md").write_text(
        CARD.format(
            recipe=finished.recipe.name,
            agreement=agreement,
            climbed=climbed,
            mean=mean,
            std=std,
            base=name,
            difference=told,
        ),
        encoding="utf-8",
    )


def _answers(finished: FinishedRun) -> list[tuple[Prompt, str]]:
    """Answers of the policies to compare scores on; one of our own before the evaluation."""
    given = [
        (tuple(row["prompt"]), answer["answer"]) for row in finished.samples for answer in row["policies"].values()
    ]
    return given[:CHECKED] or [(user("Hello!"), "Hello, what can I do for you?")]


def ending_with_answers(tokenizer: Any) -> str:
    """The chat template under which a chat that ends with an answer has the tokens that the reward model was trained on."""
    space = space_before(tokenizer, user("Hi"), "Hello")
    body = str(tokenizer.chat_template).removeprefix(FIXED)
    answer = f"{{% if answer is defined %}}{{{{ {json.dumps(space)} ~ answer ~ eos_token }}}}{{% endif %}}"
    return f"{FIXED}{ANSWERED}{body}{answer}"


def _ids(tokenizer: Any, prompt: Prompt, answer: str) -> list[int]:
    turns = [message._asdict() for message in (*prompt, Message("assistant", answer))]
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


@torch.no_grad()
def _difference(folder: Path, dtype: torch.dtype, rows: Sequence[Row], before: Sequence[float]) -> float:
    """The largest difference of a saved model's scores from those before, as a share of the largest.

    Raises:
        UserError: it is more than `TOLERANCE`.
    """
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=dtype, trust_remote_code=False).eval()
    model = on_device(model)
    after = [model(input_ids=torch.tensor([row["input_ids"]], device=model.device)).logits.item() for row in rows]
    difference: float = max(abs(a - b) for a, b in zip(after, before, strict=True)) / (max(map(abs, before)) or 1.0)
    if not difference <= TOLERANCE.get(dtype, 1e-2):
        raise UserError(
            f"the merged weights' scores differ from the adapter's by {difference:.1e} of the largest; nothing was exported"
        )
    return difference
