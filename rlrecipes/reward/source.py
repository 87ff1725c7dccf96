"""Where a reward model comes from that the run does not train itself (`reward.model=…`). Nothing here loads it.

    runs/shared/translation+dialogue/reward   a reward stage: the adapter in it is taken
    someone/qwen2.5-7b-rm-lora                a PEFT adapter of a sequence classifier, here from the hub
    checkpoints/deberta-rm                    a whole sequence classifier

One output is the score. A plain LoRA adapter on the policy's own base becomes one more adapter of it; anything else is a
second model in memory, with its own tokenizer.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlrecipes.errors import UserError, first_line, option
from rlrecipes.hub.reach import ADAPTER, ADAPTER_WEIGHTS, WEIGHTS, is_hub_id, is_local, reach_model
from rlrecipes.model.embedded import check_base
from rlrecipes.profile import Profile
from rlrecipes.run.checksums import check
from rlrecipes.run.folder import DONE, read_json

CHECKPOINT = "config.json"
CLASSIFIER = "ForSequenceClassification"
TOKENIZERS = ("tokenizer_config.json", "tokenizer.json")
VOCABULARIES = ("vocab.txt", "vocab.json", "tokenizer.model", "spiece.model", "spm.model", "sentencepiece.bpe.model")
"""The tokenizers of older checkpoints, which have no `TOKENIZERS`."""
ADAPTER_KEYS = {"task_type": str, "peft_type": str, "base_model_name_or_path": str}
CHECKPOINT_KEYS = {"architectures": list, "id2label": dict, "num_labels": int}
"""The keys that are read from the two configurations, and the types of their values."""
HEADS = ("score.weight", "classifier.weight", "classifier.out_proj.weight", "classification_head.out_proj.weight")
"""The names of heads, whose first dimension is the outputs."""
JSON_TYPES = {str: "text", list: "list", dict: "object", int: "number"}


@dataclass(frozen=True)
class RewardSource:
    """A reward model that is there and has the right form."""

    name: str
    """As the user gave it."""
    place: str
    """Where it is: a local folder, or a hub id."""
    base: str | None
    """The model that the adapter stands on; None for a whole checkpoint."""
    plain: bool
    """Whether it is LoRA and a linear head and nothing else, so that it can share a base."""

    def shares(self, model_name: str) -> bool:
        """Whether it can be one more adapter of the policy's base."""
        return self.plain and self.base is not None and _real(self.base) == _real(model_name)


def find_reward_model(name: str) -> RewardSource:
    """The reward model called `name`. For a hub id this fetches its small files alone.

    Raises:
        UserError: there is none, it is no reward model or not all of one, or it has more than one output.
    """
    if is_local(name):
        return _in_folder(name)
    if not is_hub_id(name):
        raise _none(name, "is not there: there is no such folder, and a hub id is written owner/name")
    reach_model(name, "reward.model")
    files = {file: path for file in (ADAPTER, CHECKPOINT) if (path := _fetched(name, file))}
    if ADAPTER in files and (weights := _fetched(name, ADAPTER_WEIGHTS)):
        files[ADAPTER_WEIGHTS] = weights
    return _inspect(name, str(files[ADAPTER].parent) if ADAPTER in files else name, files)


def model_beside(profile: Profile) -> str | None:
    """The model that a reward model from elsewhere brings into memory beside the policy's base; None if it brings none.

    Raises:
        UserError: `reward.model` is set to something that is no reward model.
    """
    if profile.reward.model is None:
        return None
    source = find_reward_model(profile.reward.model)
    # The embedded base's folder is known only when it is made; an adapter of another counts as sharing, as that is as small.
    embedded = profile.model.name == "builtin" and Path(source.base or "").parent.name == ".base"
    shared = source.plain if embedded else source.shares(profile.model.name)
    return None if shared else source.base or source.place


def reach_reward_model(profile: Profile) -> None:
    """Checks that a reward model from elsewhere can be reached, before the data are read.

    Raises:
        UserError: there is none, it is no reward model, or the model that it stands on is out of reach.
    """
    beside = model_beside(profile)
    if beside is not None and beside != profile.reward.model:
        reach_model(beside, None)


def _in_folder(name: str) -> RewardSource:
    folder = Path(os.path.expanduser(name))
    if not folder.is_dir():
        raise _none(name, "is not there")
    place = folder / "adapter" if (folder / "adapter").is_dir() else folder
    if place != folder and (folder / "member-1").is_dir():
        raise UserError(
            f"reward.model={name} has several reward models, and a run takes one; name a member (put /adapter or /member-1 "
            f"behind it), or take all of them with {option('from')}"
        )
    for stage in (place, *list(place.parents)[:2]):
        _check_stage(name, stage)
    names = (ADAPTER, ADAPTER_WEIGHTS, CHECKPOINT, *WEIGHTS, *TOKENIZERS, *VOCABULARIES)
    files = {file: place / file for file in names if (place / file).is_file()}
    if ADAPTER not in files and CHECKPOINT not in files and (original := _original_of(place)):
        raise UserError(f"reward.model={name} is a stage that took its model from elsewhere; give {original} instead")
    if ADAPTER in files and ADAPTER_WEIGHTS not in files:
        raise _none(name, f"has no weights ({ADAPTER_WEIGHTS})")
    if ADAPTER not in files and CHECKPOINT in files:
        if not files.keys() & set(WEIGHTS):
            raise _none(name, f"has no weights ({WEIGHTS[0]})")
        if not files.keys() & {*TOKENIZERS, *VOCABULARIES}:
            raise _none(name, f"has no tokenizer ({', '.join(TOKENIZERS)})")
    return _inspect(name, str(place), files)


def _check_stage(name: str, stage: Path) -> None:
    """Refuses a finished stage of which a file is damaged."""
    if (stage / DONE).is_file():
        # A record that is no JSON object is empty here, and then lacks its own checksum.
        record = read_json(stage / DONE) or {"files": {}}
        check(record, stage, DONE, f"make that stage again, or give another reward.model than {name}")


def _original_of(stage: Path) -> str | None:
    """The `reward.model` of a finished reward stage that left no adapter, since its model stands beside the base."""
    record = read_json(stage / DONE).get("reward_model")
    return str(record.get("name")) if isinstance(record, dict) else None


def _inspect(name: str, where: str, files: Mapping[str, Path]) -> RewardSource:
    if ADAPTER in files:
        return _adapter(name, where, files)
    if CHECKPOINT in files:
        return _checkpoint(name, where, files)
    raise _none(name, f"has neither {ADAPTER} nor {CHECKPOINT}")


def _adapter(name: str, where: str, files: Mapping[str, Path]) -> RewardSource:
    config = _read(name, files[ADAPTER], ADAPTER_KEYS)
    task, base, kind = config.get("task_type"), config.get("base_model_name_or_path"), config.get("peft_type")
    if task != "SEQ_CLS":
        raise UserError(
            f"reward.model={name} is no reward model: its adapter was trained for {task or 'no task that it names'}, "
            "not for sequence classification (SEQ_CLS); give a reward stage's folder"
        )
    if not kind:
        raise UserError(f"reward.model={name}: {files[ADAPTER]} names no kind of adapter; set peft_type in it")
    if not base:
        raise UserError(f"reward.model={name}: {files[ADAPTER]} names no base model; set base_model_name_or_path in it")
    if base.startswith((".", "/", "~")) and not Path(os.path.expanduser(base)).is_dir():
        raise UserError(f"reward.model={name}: its base model '{base}' is not there; mend {files[ADAPTER]}")
    check_base(Path(os.path.expanduser(base)))
    shapes = _shapes(name, files[ADAPTER_WEIGHTS]) if ADAPTER_WEIGHTS in files else {}
    heads = {key: shape for key, shape in shapes.items() if "lora_" not in key}
    _check_outputs(name, heads)
    plain = kind == "LORA" and [key.endswith("score.weight") for key in heads] == [True]
    return RewardSource(name, where, base, plain)


def _checkpoint(name: str, where: str, files: Mapping[str, Path]) -> RewardSource:
    config = _read(name, files[CHECKPOINT], CHECKPOINT_KEYS)
    architectures = [str(kind) for kind in config.get("architectures") or []]
    if not any(kind.endswith(CLASSIFIER) for kind in architectures):
        kinds = ", ".join(architectures) or "no architecture that it names"
        raise UserError(
            f"reward.model={name} is no reward model: it is {kinds}, and a reward model is a sequence classifier "
            f"(…{CLASSIFIER}) with one output"
        )
    labels = len(config.get("id2label") or {}) or config.get("num_labels") or 2  # 2 is Transformers' default
    if labels != 1:
        raise _outputs(name, labels)
    if WEIGHTS[0] in files:
        _check_outputs(name, _shapes(name, files[WEIGHTS[0]]))
    return RewardSource(name, where, None, plain=False)


def _check_outputs(name: str, shapes: Mapping[str, list[int]]) -> None:
    for key, shape in shapes.items():
        if key.removeprefix("base_model.").removeprefix("model.") in HEADS and shape[:1] != [1]:
            raise _outputs(name, *shape[:1])


def _none(name: str, why: str) -> UserError:
    return UserError(
        f"there is no reward model in reward.model={name}: it {why}; give a reward stage's folder, a PEFT adapter or a "
        "sequence classifier"
    )


def _outputs(name: str, count: int = 0) -> UserError:
    return UserError(
        f"reward.model={name} has {count} outputs; a reward model has one, the score; choose another model"
    )


def _damaged(name: str, path: Path, why: str = "") -> UserError:
    return UserError(f"reward.model={name}: {path.name} is damaged{why}; get the model again")


def _read(name: str, path: Path, kinds: Mapping[str, type]) -> dict[str, Any]:
    """A JSON object whose values have the types that `kinds` names for their keys, or are null.

    Raises:
        UserError: the file is damaged, or a value has another type.
    """
    try:
        config = dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, RecursionError):
        raise _damaged(name, path) from None
    for key, kind in kinds.items():
        if not isinstance(config.get(key), kind | None):
            raise _damaged(name, path, f" (its {key} is no {JSON_TYPES[kind]})")
    return config


def _shapes(name: str, path: Path) -> dict[str, list[int]]:
    """Names and shapes of a file's tensors.

    Raises:
        UserError: the file is damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise _damaged(name, path, f" ({first_line(error)})") from None


def _fetched(name: str, file: str) -> Path | None:
    """A file of a hub repository, or None where the repository has no such file.

    Raises:
        UserError: the file cannot be fetched.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return Path(hf_hub_download(name, file))
    except EntryNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"cannot read {file} of reward.model={name}: {first_line(error)}; try again") from None


def _real(name: str) -> str:
    path = Path(os.path.expanduser(name))
    return str(path.resolve()) if path.is_dir() else name
