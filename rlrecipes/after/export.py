"""A policy for the world outside: `runs/<run>/<recipe>/export/`, whole or not at all.

README.md     the model card
adapter/      adapter_config.json, adapter_model.safetensors, generation_config.json, the tokenizer
base/         the base model, if it is the embedded base, which nobody else has
merged/       with `--merged`: whole weights, the adapter merged into the unquantized base
manifest.json the names of these files: what else comes into the folder is not deleted with it
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from rlrecipes.after.card import LENGTH, Merged, card, public
from rlrecipes.after.elsewhere import make_readable
from rlrecipes.after.finished import FinishedRun
from rlrecipes.errors import UserError, option, switch
from rlrecipes.hub.reach import ADAPTER, ADAPTER_WEIGHTS
from rlrecipes.model.forward import device
from rlrecipes.model.loading import check_model, model_config
from rlrecipes.model.tokens import decode, encode, encode_prompt, ends, open_tokenizer
from rlrecipes.recipe import user
from rlrecipes.run.checksums import MANIFEST, files_in
from rlrecipes.run.console import say
from rlrecipes.run.device import is_out_of_memory
from rlrecipes.run.folder import make, read_json, refuse_others, write_json
from rlrecipes.run.lock import locked
from rlrecipes.run.stages import POLICIES

CHECKED = 8
"""Prompts on which logits are compared."""
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""The largest difference of a logit that saved weights may show, as a share of the largest; by their type."""


def export(
    finished: FinishedRun, policy: str, merged: bool, repository: str | None, elsewhere: Path | None = None
) -> Path:
    """Writes the export of a policy in place of an earlier one, and returns its folder: the run's, or `elsewhere`.

    Raises:
        UserError: the base, or for merging its unquantized weights, cannot be loaded; a file of the run is damaged; a file
            stands in the place of the export's folder; or the merged weights are not those of the adapter.
    """
    base = finished.base_model()
    check_model(base, finished.model)
    if merged:
        check_unquantized(base)
    _ = finished.prompts  # damage must show before the work
    base_name = "base" if finished.embedded else base if repository is None else public(base)

    def write(draft: Path, place: Path) -> None:
        tokenizer = _adapter(finished, policy, base, base_name, draft / "adapter")
        if finished.embedded:
            shutil.copytree(base, draft / "base")
        comparison = _merge(finished, policy, base, tokenizer, draft) if merged else None
        (draft / "README.md").write_text(card(finished, policy, comparison, repository, place), encoding="utf-8")

    return replaced(finished.run.folder, "export", elsewhere, f"adapter/{ADAPTER}", write)


def replaced(folder: Path, name: str, elsewhere: Path | None, mark: str, write: Callable[[Path, Path], None]) -> Path:
    """Puts what `write(draft, place)` writes into a draft in the place of an earlier export, whole or not at all.

    The place is `name` in the run's `folder`, or `elsewhere`; a file called `mark` tells an export there from anything else.

    Raises:
        UserError: something else stands in the place or in the earlier export, or nothing can be written there.
    """
    place = Path(os.path.expanduser(elsewhere)).absolute() if elsewhere else folder / name
    tag = "-export" if elsewhere else ""  # beside a folder of one's own may stand another that is hidden
    draft, previous = (place.with_name(f".{place.name}{tag}{ending}") for ending in ("", "-before"))
    if place.is_file():
        raise UserError(f"{place} is a file, and the export's folder is to stand there; move it away")
    if elsewhere and place.exists() and any(place.iterdir()) and not (place / mark).is_file():
        raise UserError(f"{place} holds something else than an export; name another folder")
    if not elsewhere and not os.access(folder, os.W_OK):
        raise UserError(f"nothing can be written into {folder}; name a folder ({option('to')})")
    place.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        _put_back(previous, place)
        refuse_others(place, _others(place, mark), "the export")
        shutil.rmtree(draft, ignore_errors=True)
        try:
            write(draft, place)
            make_readable(draft)
            write_json(draft / MANIFEST, {"files": _names(draft)})
            refuse_others(place, _others(place, mark), "the export")  # that came since
            if place.exists():
                place.rename(previous)
            draft.rename(place)
            shutil.rmtree(previous, ignore_errors=True)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return place


def _others(place: Path, mark: str) -> list[str]:
    """The files in an export's place that it did not write; none where the export is from before it had a list."""
    own = read_json(place / MANIFEST).get("files")
    if own is None and (place / mark).is_file():
        return []
    return [name for name in _names(place) if name not in (MANIFEST, *(own or ()))]


def _names(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in files_in(folder)]


def _put_back(previous: Path, place: Path) -> None:
    """Puts back an earlier export that a killed process was about to replace, unless the new one is in its place."""
    if previous.exists() and not place.exists():
        previous.rename(place)
    shutil.rmtree(previous, ignore_errors=True)


def check_unquantized(base: str) -> None:
    if getattr(AutoConfig.from_pretrained(base, trust_remote_code=False), "quantization_config", None):
        raise UserError(
            f"'{base}' holds quantized weights alone, and nothing can be merged into those; "
            f"export without {switch('merged')}"
        )


def _adapter(finished: FinishedRun, policy: str, base: str, base_name: str, folder: Path) -> Any:
    """Writes the adapter, its tokenizer and its generation settings; `base_name` is the base in the adapter's configuration.

    Returns the tokenizer as training had it.
    """
    stage = str(POLICIES[policy].stage)
    source, again = finished.run.stage(stage) / "adapter", f"{make(stage, finished.run)} {switch('force')}"
    config = _load(source / ADAPTER, lambda path: LoraConfig.from_pretrained(path.parent), again)
    weights = _load(source / ADAPTER_WEIGHTS, load_file, again)
    config.task_type, config.inference_mode = "CAUSAL_LM", True
    config.base_model_name_or_path = base_name
    config.save_pretrained(folder)
    save_file(weights, folder / ADAPTER_WEIGHTS, {"format": "pt"})
    tokenizer = open_tokenizer(base)
    if tokenizer.pad_token_id >= model_config(base).get_text_config().vocab_size:
        tokenizer.pad_token = tokenizer.eos_token  # other code would look up an embedding for ours
    tokenizer.save_pretrained(folder)
    _generation(finished, tokenizer).save_pretrained(folder)
    return tokenizer


def _load(path: Path, load: Callable[[Path], Any], again: str) -> Any:
    """Loads a file of a finished stage; the command `again` makes that stage anew.

    Raises:
        UserError: the file is damaged or missing.
    """
    try:
        return load(path)
    except Exception:  # whatever PEFT and safetensors raise over a file that is damaged or gone
        raise UserError(f"{path} is damaged or missing; make its stage again with `{again}`") from None


def _generation(finished: FinishedRun, tokenizer: Any) -> GenerationConfig:
    """Greedy, to our EOS. It switches off what a base's own configuration may add, such as a repetition penalty.

    It has no `max_new_tokens`: servers would take it for the most that anybody may ask for.
    """
    return GenerationConfig(
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        eos_token_id=[*ends(tokenizer)] if len(ends(tokenizer)) > 1 else tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )


def _merge(finished: FinishedRun, policy: str, base: str, tokenizer: Any, draft: Path) -> Merged:
    """Writes `merged/` and compares its weights with the adapter.

    It merges in float32, in main memory (4 bytes for each parameter), and saves in the type of the base's own checkpoint.

    Raises:
        UserError: the unquantized weights cannot be loaded, or the logits differ by more than `TOLERANCE`.
    """
    say("  merging into the unquantized base")
    prompts = list(finished.prompts)[:CHECKED] or [user("Hello!")]
    texts = [row["policies"][policy]["answer"] for row in finished.samples[:CHECKED]] or [""] * len(prompts)
    rows = [encode(tokenizer, prompt, text).ids for prompt, text in zip(prompts, texts, strict=True)]
    model = PeftModel.from_pretrained(_unquantized(base), draft / "adapter").eval()
    adapter_logits = _logits(model, rows)
    whole = model.merge_and_unload(safe_merge=True)
    dtype = getattr(AutoConfig.from_pretrained(base, trust_remote_code=False), "dtype", None) or torch.float32
    whole.generation_config = _generation(finished, tokenizer)
    whole.config.use_cache = True
    for name in ("eos_token_id", "pad_token_id"):
        setattr(whole.config, name, getattr(whole.generation_config, name))
    whole.to(dtype).save_pretrained(draft / "merged")
    shutil.copytree(draft / "adapter", draft / "merged", dirs_exist_ok=True, ignore=shutil.ignore_patterns("adapter_*"))
    del model, whole

    merged = on_device(
        AutoModelForCausalLM.from_pretrained(draft / "merged", dtype=dtype, trust_remote_code=False).eval()
    )
    difference = max(
        ((a - b).abs().max() / a.abs().max()).item() for a, b in zip(adapter_logits, _logits(merged, rows), strict=True)
    )
    if not difference <= TOLERANCE.get(dtype, 1e-2):
        raise UserError(
            f"the merged weights' logits differ from the adapter's by {difference:.1e} of the largest; nothing was exported"
        )
    length = finished.answer_length or LENGTH
    same = sum(
        _answer(merged, tokenizer, encode_prompt(tokenizer, prompt), length) == row["policies"][policy]["answer"]
        for prompt, row in zip(finished.prompts, finished.samples, strict=False)
    )
    comparison = Merged(str(dtype).removeprefix("torch."), difference, len(rows), same, len(finished.samples))
    for sentence in comparison.sentences(finished.model.quantization):
        say(f"  {sentence}")
    return comparison


def _unquantized(base: str) -> Any:
    try:
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise UserError(
            f"the weights of '{base}' cannot be had ({reason}); export without {switch('merged')}"
        ) from None
    return model


def on_device(model: Any) -> Any:
    try:
        return model.to(device())
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return model.to("cpu")  # training had it in 4 bits; unquantized it may not fit


@torch.no_grad()
def _logits(model: Any, rows: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """Logits `[length, vocabulary]` of each row."""
    return [model(input_ids=torch.tensor([row], device=model.device)).logits[0].float().cpu() for row in rows]


@torch.no_grad()
def _answer(model: Any, tokenizer: Any, ids: Sequence[int], length: int) -> str:
    prompt = torch.tensor([ids], device=model.device)
    answer = model.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=length)
    answer = answer[0, len(ids) :]
    return decode(tokenizer, answer)
