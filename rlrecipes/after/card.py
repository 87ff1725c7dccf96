"""The model card of an export: the policy, how to load it, its data, its results and its settings.

# translation, PPO policy
…
| metric | base | SFT | PPO |
|---|---|---|---|
| chrf | 0.780 [0.767, 0.793] | 0.771 [0.760, 0.782] | 0.954 [0.943, 0.963] |
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData

from rlrecipes.after.finished import FinishedRun
from rlrecipes.hub.reach import is_hub_id, is_local
from rlrecipes.recipe import BUILT_IN, is_hub
from rlrecipes.report.languages import PREFIX, languages
from rlrecipes.report.records import climbed
from rlrecipes.run.folder import make
from rlrecipes.run.stages import POLICIES, below, models
from rlrecipes.text import interval

LENGTH = 256
"""Tokens of an answer where no training says how long answers are."""
LOAD = """\
import re

import torch
from peft import {config_import}PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer{quantized_import}, GenerationConfig
{places}
tokenizer = AutoTokenizer.from_pretrained(adapter)
model = AutoModelForCausalLM.from_pretrained(
    base, dtype=torch.{dtype},{quantized}
)
{as_stored}model = PeftModel.from_pretrained(model, adapter).eval()
model.generation_config = GenerationConfig.from_pretrained(adapter)


def read(text, plain=False):
    return tokenizer(text, add_special_tokens=False, split_special_tokens=plain)["input_ids"]


def answer(messages):
    begun = messages[-1]["role"] == "assistant"  # an answer's beginning, which the model goes on with
    special = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    special.sort(key=len, reverse=True)
    plain = dict(zip(special, map(chr, range(0xF0000, 0xFFFFD))))  # a turn that spells one means its text
    for token, mark in plain.items():
        messages = [dict(turn, content=turn["content"].replace(token, mark)) for turn in messages]
    text = tokenizer.apply_chat_template(
        messages, add_generation_prompt=not begun, continue_final_message=begun, tokenize=False
    )
    prompt = read(text)
    if any(mark in text for mark in plain.values()):
        follows = read(special[0] + "x")[1:] != read("x")  # SentencePiece: a space before the first word alone
        prompt = []
        for i, part in enumerate(re.split("(" + "|".join(map(re.escape, special)) + ")", text)):
            for token, mark in plain.items():
                part = part.replace(mark, token)
            before = "\\n" if follows and i else ""
            template = i % 2 == 1  # between the pieces stand the template's own tokens
            prompt += read(part) if template else read(before + part, True)[len(read(before)) :]
    ids = torch.tensor([prompt], device=model.device)
    ids = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens={tokens})[0, len(prompt) :]
    return tokenizer.decode(ids, skip_special_tokens=True).strip()


print(answer({messages}))"""

QUANTIZED = """
    quantization_config=BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.{dtype},
    ),"""

AS_STORED = """\
for layer in model.modules():
    if hasattr(layer, "support_avx512bf16_for_cpu"):  # there bitsandbytes would repack it: other numbers, or an error
        layer.support_avx512bf16_for_cpu = False
"""
"""What `model.loading` does to 4-bit layers, so that they are on every CPU those that trained."""


SPOKEN = 0.1
"""The share of a policy's answers that a language needs to be one of the card's."""


@dataclass(frozen=True)
class Merged:
    """How the merged weights compare with the adapter in them."""

    dtype: str
    """The type of the saved weights, such as `bfloat16`."""
    difference: float
    """The largest difference of a logit from the adapter's on the unquantized base, as a share of the largest logit."""
    prompts: int
    """The number of prompts behind `difference`."""
    same: int
    """Greedy answers equal to those of the policy as it was evaluated."""
    compared: int
    """The number of answers behind `same`; 0 before the evaluation."""

    def sentences(self, quantization: str) -> list[str]:
        """The measurements in words, for the console and the card."""
        logits = (
            f"On {self.prompts} prompts the merged weights' logits differ from those of the adapter on the unquantized base "
            f"by at most {self.difference:.1e} of the largest ({self.dtype})."
        )
        base = "the 4-bit base" if quantization == "nf4" else "the unquantized base"
        if not self.compared:
            answers = f"How they compare with the policy on {base} was not measured: there is no evaluation yet."
        else:
            answers = (
                f"The policy was trained and evaluated on {base}; of {self.compared} held-out prompts, {self.same} get "
                "the same greedy answer from the merged weights."
            )
        return [logits, answers]


def card(finished: FinishedRun, policy: str, merged: Merged | None, repository: str | None, folder: Path) -> str:
    """The README.md of an export in `folder`; with `repository`, its code loads from there on the hub."""
    summary = finished.recipe.summary
    parts = [
        _front(finished, policy),
        f"# {finished.recipe.name}, {POLICIES[policy].title} policy",
        f"A LoRA adapter made with rlrecipes on TRL, {finished.table[policy].training}. The task: {summary}.",
        "## Use",
        f"```python\n{_load(finished, repository, folder)}\n```",
        *_base(finished),
        *(_merged(finished, merged, repository, folder) if merged else ()),
        "## Data and licence",
        *_data(finished),
        "## Results",
        *_results(finished, policy),
        "## Training",
        *_training(finished, policy),
    ]
    return "\n\n".join(parts) + "\n"


def _front(finished: FinishedRun, policy: str) -> str:
    """The YAML header, which the hub reads. It names a licence only where all licences are known."""
    name = finished.model.name
    on_hub = not finished.embedded and public(name) == name
    results = _eval_results(finished, policy)
    style = finished.records.get("evaluate", {}).get("style", {}).get(policy, {})
    front = ModelCardData(
        language=[name.removeprefix(PREFIX) for name in languages(style) if style[name]["value"] >= SPOKEN] or None,
        library_name="peft",
        pipeline_tag="text-generation",
        license="apache-2.0" if finished.embedded and _source(finished) == BUILT_IN else None,
        base_model=name if on_hub else None,
        base_model_relation="adapter" if on_hub else None,
        datasets=[each["id"] for each in finished.first["data"].get("hub", ())] or None,
        tags=["rlrecipes", "trl", "lora", *([policy] if policy != "sft" else [])],
        metrics=[result.metric_type for result in results] or None,
        model_name=f"{finished.recipe.name}, {POLICIES[policy].title}" if results else None,
        eval_results=results or None,
    )
    return f"---\n{front.to_yaml(original_order=['language', 'library_name', 'pipeline_tag', 'license'])}\n---"


def _eval_results(finished: FinishedRun, policy: str) -> list[EvalResult]:
    """The policy's metrics as the hub lists them; none before the evaluation. A value that is no number is left out."""
    data = finished.first["data"]
    sets = [each["id"] for each in data.get("hub", ())]
    source = "the recipe's own data" if _source(finished) == BUILT_IN else _public_data(data["source"])
    metrics = finished.records.get("evaluate", {}).get("metrics", {}).get(policy, {})
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=sets[0] if len(sets) == 1 else finished.recipe.name,
            dataset_name=f"{finished.recipe.name}: {source}",
            dataset_split="held out",
            metric_type=name,
            metric_name=f"{name} {' '.join(interval(found))}".strip(),
            metric_value=found["value"],
        )
        for name, found in metrics.items()
        if math.isfinite(found["value"])
    ]


def _load(finished: FinishedRun, repository: str | None, folder: Path) -> str:
    """Python that loads the policy as it was trained and asks it, with nothing but PEFT and Transformers."""
    quantized = finished.model.quantization == "nf4"
    places = _places(finished, repository, folder)
    messages = [{"role": "user", "content": f"{finished.prefix}…"}]
    if _source(finished) == BUILT_IN:  # the user's own rows are not ours to show
        messages = [message._asdict() for message in finished.prompts[0]]
    return LOAD.format(
        config_import="PeftConfig, " if "PeftConfig" in places else "",
        quantized_import=", BitsAndBytesConfig" if quantized else "",
        quantized=QUANTIZED.format(dtype=finished.model.dtype) if quantized else "",
        as_stored=AS_STORED if quantized else "",
        dtype=finished.model.dtype,
        places=places,
        messages=json.dumps(messages, ensure_ascii=False),
        tokens=finished.answer_length or LENGTH,
    )


def _places(finished: FinishedRun, repository: str | None, folder: Path) -> str:
    """Python that names the places of the adapter and its base."""
    name = finished.model.name
    if finished.embedded and repository:
        return (
            f'from huggingface_hub import snapshot_download\n\nadapter = snapshot_download("{repository}")\n'
            'base = f"{adapter}/base"'
        )
    if finished.embedded:
        return f'\nadapter, base = "{folder / "adapter"}", "{folder / "base"}"'
    if repository or public(name) == name:
        return f'\nadapter, base = "{repository or folder / "adapter"}", "{public(name)}"'
    # The adapter knows the folder of its base on this machine; the card may be shown to others.
    return f'\nadapter = "{folder / "adapter"}"\nbase = PeftConfig.from_pretrained(adapter).base_model_name_or_path'


def _base(finished: FinishedRun) -> list[str]:
    base = {
        True: "`base/` is the base model, a small Llama that rlrecipes trained from scratch on generated text.",
        False: f"The base model is `{public(finished.model.name)}`.",
    }[finished.embedded]
    return [f"{base} Answers are greedy and end with the token that `generation_config.json` names."]


def _merged(finished: FinishedRun, merged: Merged, repository: str | None, folder: Path) -> list[str]:
    where = f'"{repository}", subfolder="merged"' if repository else f'"{folder / "merged"}"'
    return [
        "### Merged weights",
        f"`merged/` needs no PEFT: `AutoModelForCausalLM.from_pretrained({where})`. "
        + " ".join(merged.sentences(finished.model.quantization)),
    ]


def _data(finished: FinishedRun) -> list[str]:
    data = finished.first["data"]
    rows = ", ".join(f"{count} {name.replace('_', '-')}" for name, count in data["kept"].items())
    dropped = "".join(f" {count} rows were left out: {reason}." for reason, count in data["dropped"].items())
    if _source(finished) == BUILT_IN:
        origin = f"Generated by the recipe {finished.recipe.name} itself, with faults on purpose; Apache-2.0, as it is."
    elif sets := data.get("hub"):
        names = "; ".join(f"`{each['id']}` (licence: {each['licence']})" for each in sets)
        origin = f"Public data sets of the hub: {names}."
    else:
        origin = (
            f"`{_public_data(data['source'])}`. Its licence is not known here: write it down before you pass this on."
        )
    own = "" if finished.embedded else " The licence of the base model holds as well."
    return [f"{origin}{own}", f"{rows[0].upper()}{rows[1:]}.{dropped} Fingerprint {data['fingerprint']}."]


def _results(finished: FinishedRun, policy: str) -> list[str]:
    evaluation = finished.records.get("evaluate")
    if evaluation is None:
        return [f"Not evaluated yet; `{make('evaluate', finished.run)}`, then export again."]
    names = list(models())
    policies = [name for name in names[: names.index(policy) + 1] if name in evaluation["metrics"]]
    names = list(evaluation["metrics"][policy])
    rows = [[f"`{name}`", *(_estimate(evaluation["metrics"][p].get(name)) for p in policies)] for name in names]
    table = _table(["metric", *(POLICIES[name].title for name in policies)], rows)
    sentences = [
        f"Greedy answers to {evaluation['examples']} held-out prompts, with 95 % intervals; `{evaluation['headline']}` is "
        f"the headline, `_sampled` is at temperature 1, `reward` is what {climbed(finished.records)}."
    ]
    over = finished.table[policy].over
    if over and (pair := evaluation["comparisons"].get(f"{policy}_over_{over}")) and policy != "sft":
        titles = f"{POLICIES[policy].title} over {POLICIES[over].title}"
        sentences.append(f"{titles}, in pairs: {_estimate(pair['gain'], signed=True)} `{evaluation['headline']}`.")
    metrics = finished.records.get("reward", {}).get("metrics", {})
    if accuracy := metrics.get("accuracy"):
        sentences.append(f"The reward model's accuracy on held-out comparisons: {_estimate(accuracy)}.")
    if spearman := metrics.get("spearman"):
        sentences.append(f"The reward model's rank correlation with held-out ratings: {_estimate(spearman)}.")
    return [table, " ".join(sentences)]


def _reward(finished: FinishedRun) -> str:
    """What the learned reward is."""
    record = finished.records.get("reward")
    if record is None:
        return "none: programmed terms alone"
    if source := record.get("reward_model"):
        return f"`{public(source['name'])}`, taken as it was"
    several = f", {len(record['members'])} that score together" if record.get("members") else ""
    return f"trained here, {record['objective']}{several}"


def _training(finished: FinishedRun, policy: str) -> list[str]:
    stage = str(POLICIES[policy].stage)
    stages = [name for name in (*below(stage), stage) if name in finished.records]
    last = finished.records[stage]
    facts = [
        *([["reward model", _reward(finished)]] if "reward" in below(stage) else []),
        ["seed", str(last["seed"])],
        ["seconds", ", ".join(f"{name} {finished.records[name]['seconds']:.0f}" for name in stages)],
        ["finished", str(last["finished"])],
        ["rlrecipes", str(last["git_commit"] or "unknown commit")],
        ["libraries", ", ".join(f"{name} {version}" for name, version in last["versions"].items())],
        ["Weights & Biases", _links({name: finished.records[name].get("wandb") for name in stages})],
    ]
    shorten = {"data.source": _public_data, "model.name": public, "reward.model": public}
    settings = {
        key: shorten[key](value) if key in shorten and value else value for key, value in last["settings"].items()
    }
    lines = "\n".join(f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in settings.items())
    return [_table(["", ""], facts), f"Settings:\n\n```\n{lines}\n```"]


def _links(links: Mapping[str, str | None]) -> str:
    pages = [f"[{stage}]({link})" for stage, link in links.items() if link]
    return ", ".join(pages) or "no page: tracked offline or not at all"


def _source(finished: FinishedRun) -> str:
    return str(finished.first["data"]["source"])


def public(name: str) -> str:
    """A model's name for the card: a hub id, or the last part of a local path, even of a folder that is gone."""
    return name if is_hub_id(name) and not is_local(name) else Path(name).absolute().name


def _public_data(source: str) -> str:
    return source if source == BUILT_IN or is_hub(source) else Path(source).absolute().name


def _estimate(estimate: Mapping[str, float] | None, signed: bool = False) -> str:
    return "–" if estimate is None else " ".join(interval(estimate, signed)).strip()


def _table(titles: list[str], rows: list[list[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
