"""Where a reward model comes from that the run does not train itself (`reward.model=…`), told without loading it.

    runs/shared/translation+dialogue/reward   a reward stage: the adapter in it is taken
    someone/qwen2.5-7b-rm-lora                a PEFT adapter of a sequence classifier, here from the hub
    checkpoints/deberta-rm                    a whole sequence classifier

One output is the score. A plain LoRA adapter on the policy's own base becomes one more adapter of it; anything else is a
second model in memory, with its own tokenizer.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlrecipes.access import ADAPTER, ADAPTER_WEIGHTS, is_local, reach_model
from rlrecipes.errors import UserError
from rlrecipes.profile import Profile

CHECKPOINT = "config.json"
CLASSIFIER = "ForSequenceClassification"


@dataclass(frozen=True)
class RewardSource:
    """A reward model that has been found, and looks like one."""

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
    """The reward model called `name`; of a hub id only its small files are fetched.

    Raises:
        UserError: there is none, it is no reward model, or it has more than one output.
    """
    if is_local(name):
        place = Path(name).expanduser()
        if not place.is_dir():
            raise _none(name, "is not there")
        place = place / "adapter" if (place / "adapter").is_dir() else place
        files = {file: place / file for file in (ADAPTER, CHECKPOINT, ADAPTER_WEIGHTS) if (place / file).is_file()}
        where = str(place)
    else:
        reach_model(name, "reward.model")
        files = {file: path for file in (ADAPTER, CHECKPOINT) if (path := _fetched(name, file))}
        if ADAPTER in files and (weights := _fetched(name, ADAPTER_WEIGHTS)):
            files[ADAPTER_WEIGHTS] = weights
        where = str(files[ADAPTER].parent) if ADAPTER in files else name
    if ADAPTER in files:
        return _adapter(name, where, files)
    if CHECKPOINT in files:
        return _checkpoint(name, where, files[CHECKPOINT])
    raise _none(name, f"has neither {ADAPTER} nor {CHECKPOINT}")


def model_beside(profile: Profile) -> str | None:
    """The model that a reward model from elsewhere brings into memory beside the policy's base; None: it brings none.

    Raises:
        UserError: `reward.model` is set to something that is no reward model.
    """
    if profile.reward.model is None:
        return None
    source = find_reward_model(profile.reward.model)
    # The embedded base's folder is known only when it is made; another one than the run's would be as small.
    embedded = profile.model.name == "builtin" and Path(source.base or "").parent.name == ".base"
    shared = source.plain if embedded else source.shares(profile.model.name)
    return None if shared else source.base or source.place


def _adapter(name: str, where: str, files: dict[str, Path]) -> RewardSource:
    config = _read(name, files[ADAPTER])
    task, base = config.get("task_type"), config.get("base_model_name_or_path")
    if task != "SEQ_CLS":
        raise UserError(
            f"reward.model={name} is no reward model: its adapter was trained for {task or 'no task that it names'}, "
            "not for sequence classification (SEQ_CLS); give a reward stage's folder"
        )
    if not isinstance(base, str) or not base:
        raise UserError(f"reward.model={name}: {files[ADAPTER]} names no base model; set base_model_name_or_path in it")
    if base.startswith((".", "/", "~")) and not Path(base).expanduser().is_dir():
        raise UserError(f"reward.model={name}: its base model '{base}' is not there; mend {files[ADAPTER]}")
    shapes = _shapes(name, files[ADAPTER_WEIGHTS]) if ADAPTER_WEIGHTS in files else {}
    heads = {key: shape for key, shape in shapes.items() if "lora_" not in key}
    for key, shape in heads.items():
        if key.endswith(("score.weight", "classifier.weight", "out_proj.weight")) and shape[0] != 1:
            raise _outputs(name, shape[0])
    plain = config.get("peft_type") == "LORA" and [key.endswith("score.weight") for key in heads] == [True]
    return RewardSource(name, where, base, plain)


def _checkpoint(name: str, where: str, path: Path) -> RewardSource:
    config = _read(name, path)
    made_for = [str(kind) for kind in config.get("architectures") or []]
    if not any(kind.endswith(CLASSIFIER) for kind in made_for):
        kinds = ", ".join(made_for) or "no architecture that it names"
        raise UserError(
            f"reward.model={name} is no reward model: it is {kinds}, and a reward model is a sequence classifier "
            f"(…{CLASSIFIER}) with one output"
        )
    labels = len(config.get("id2label") or {}) or int(config.get("num_labels") or 2)  # 2 is Transformers' default
    if labels != 1:
        raise _outputs(name, labels)
    return RewardSource(name, where, None, plain=False)


def _none(name: str, why: str) -> UserError:
    return UserError(
        f"there is no reward model in reward.model={name}: it {why}; give a reward stage's folder, a PEFT adapter or a "
        "sequence classifier"
    )


def _outputs(name: str, count: int) -> UserError:
    return UserError(
        f"reward.model={name} has {count} outputs; a reward model has one, the score; choose another model"
    )


def _read(name: str, path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        raise UserError(f"reward.model={name}: {path} is damaged; get the model again") from None


def _shapes(name: str, path: Path) -> dict[str, list[int]]:
    """Names and shapes of a safetensors file's tensors: its first 8 bytes say how long the JSON is that holds them."""
    try:
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        return {key: tensor["shape"] for key, tensor in header.items() if key != "__metadata__"}
    except (ValueError, TypeError, KeyError, OverflowError, MemoryError):
        raise UserError(f"reward.model={name}: {path} is damaged; get the model again") from None


def _fetched(name: str, file: str) -> Path | None:
    """A file of the hub's; None where the repository has no such file, or none in the cache when that is all there is.

    Raises:
        UserError: it was not to be had after all.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return Path(hf_hub_download(name, file))
    except EntryNotFoundError:
        return None
    except OSError as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise UserError(f"cannot read {file} of reward.model={name}: {reason}; try again") from None


def _real(name: str) -> str:
    path = Path(name).expanduser()
    return str(path.resolve()) if path.is_dir() else name
