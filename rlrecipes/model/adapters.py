"""LoRA adapters: the roles that share one frozen base, each loaded under a name and switched without gradients.

PPO needs a policy, a reference, a reward model and a value function. Here they are adapters of one base: `reference` is the
SFT adapter, `policy` starts as its copy, `reward` comes with a score head, and the value head stands on the policy's own
trunk. PEFT switches `requires_grad` off for every adapter that is not active, so adapters are switched under `no_grad`
only, never between a forward pass and its backward pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.layer import LoraLayer, LoraVariant
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from rlrecipes.errors import UserError, first_line, switch
from rlrecipes.hub.reach import ADAPTER, ADAPTER_WEIGHTS
from rlrecipes.model.forward import causal
from rlrecipes.profile import LoraSettings
from rlrecipes.run.device import is_devices
from rlrecipes.run.folder import Run
from rlrecipes.run.stages import POLICIES
from rlrecipes.text import see, shortened


def add_lora(model: Any, settings: LoraSettings, task_type: str, name: str = "default") -> PeftModel:
    """The base with a fresh, trainable adapter; of a model that also sees or hears, on its text part alone.

    Raises:
        UserError: the model has no such modules, embeddings or the output layer are among them.
    """
    targets = [name.strip() for name in settings.target_modules.split(",")]
    layers = _text_layers(model)
    _check_targets(model, targets, layers)
    config = LoraConfig(
        r=settings.r,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules="all-linear" if targets == ["all-linear"] else targets,
        exclude_modules=_beside_text(model, layers) or None,
        task_type=task_type,
        modules_to_save=["score"] if task_type == "SEQ_CLS" else None,
    )
    try:
        wrapped = get_peft_model(model, config, adapter_name=name)
    except ValueError as error:
        raise UserError(
            f"lora.target_modules={settings.target_modules} does not fit this model: {_reason(error, layers)}"
        ) from None
    if isinstance(causal(wrapped).get_output_embeddings(), LoraLayer):
        raise UserError(
            f"lora.target_modules={settings.target_modules} names the output layer, which PPO does not train; leave it out"
        )
    add_in_place(wrapped, name)
    return wrapped


def _reason(error: ValueError, layers: Iterable[str]) -> str:
    """Why PEFT puts no adapters on a model, and what it would take."""
    if "ParamWrapper" in str(error):  # PEFT has no dropout there
        return "its experts take adapters with lora.lora_dropout=0 alone; set that, or name other layers"
    if "Mamba" in str(error):  # PEFT refuses these names for each such family
        fit = ",".join(name for name in _ends(layers) if name not in MAMBA)
        return f"its Mamba layers read the weights of {' and '.join(MAMBA)} past any adapter; take others of {fit}"
    return f"{first_line(error)}; there are {', '.join(_ends(layers))}"


MAMBA = ("conv1d", "out_proj")
"""The layers of Mamba whose weights its kernels take as they are."""


def _text_layers(model: Any) -> dict[str, nn.Module]:
    """The linear layers that an adapter may stand on, by name: of a model that also sees or hears, its text's alone.

    GPT-2's are of a class of their own.
    """
    head = model.get_output_embeddings()
    text = model if model.config.get_text_config() is model.config else model.get_decoder()
    inside = {id(module) for module in text.modules()}
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and id(module) in inside and module is not head
    }


def _ends(layers: Iterable[str]) -> list[str]:
    """The last parts of layers' names, such as `q_proj`, by which adapters name them."""
    return sorted({name.rpartition(".")[2] for name in layers})


def target_names(model: Any, settings: LoraSettings) -> list[str]:
    """The names of the layers that `lora.target_modules` puts adapters on, such as `q_proj`; `model` is the bare base."""
    names = {name.strip() for name in settings.target_modules.split(",")}
    return _ends(_text_layers(model) if names == {"all-linear"} else names)


def _check_targets(model: Any, targets: Sequence[str], layers: Mapping[str, nn.Module]) -> None:
    """Refuses names of no module, and of modules that no adapter can stand on here; `layers` are those that it can."""
    if targets == ["all-linear"]:
        return
    beside, head = set(_beside_text(model, layers)), model.get_output_embeddings()
    start, there = f"lora.target_modules={','.join(targets)}", f"there are {', '.join(_ends(layers))}"
    for target in targets:
        named = {
            name: module for name, module in model.named_modules() if name == target or name.endswith(f".{target}")
        }
        if any(isinstance(module, nn.Embedding) for module in named.values()):
            raise UserError(f"lora.target_modules={target} names embeddings, which are not trained here; leave it out")
        if named and named.keys() <= beside:
            raise UserError(f"{start}: '{target}' lies outside of the model's text, which alone is trained; {there}")
        others = named.keys() - beside - layers.keys()
        if not named or any(named[name] is not head for name in others):
            raise UserError(f"{start}: '{target}' is no linear layer of this model's text; {there}")


def _beside_text(model: Any, layers: Mapping[str, nn.Module]) -> list[str]:
    """The linear layers of a model's other senses, such as `model.vision_tower.….q_proj`; empty for a model of text."""
    head = model.get_output_embeddings()
    if model.config.get_text_config() is model.config:
        return []
    return [
        name
        for name, part in model.named_modules()
        if isinstance(part, nn.Linear) and name not in layers and part is not head
    ]


@torch.no_grad()
def check_runs(model: PeftModel, targets: str) -> None:
    """Refuses a family whose own code does not get along with adapters, as mixtures of experts may.

    Raises:
        UserError: with the library's reason.
    """
    try:
        model.eval()(input_ids=torch.arange(3, 6, device=model.device)[None])
    except Exception as error:  # each family fails in a way of its own
        if is_devices(error):
            raise
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(
            f"lora.target_modules={targets} does not fit this model ({reason}); name other layers, or choose another model"
        ) from None


def load_adapter(model: Any, folder: Path, name: str) -> PeftModel:
    """Puts the LoRA part of a saved adapter onto the base under a role's name.

    `model` is the bare base for the first role and the wrapped one for the others.

    Raises:
        UserError: the saved tensors are damaged, or do not fit the base.
    """
    with stage_file(folder / ADAPTER, folder.parent):
        config = LoraConfig.from_pretrained(folder)
    config.task_type, config.modules_to_save, config.inference_mode = None, None, False
    if isinstance(model, PeftModel):
        model.add_adapter(name, config)
    else:
        model = PeftModel(model, config, adapter_name=name)
    copy_lora(model, folder, name)
    add_in_place(model, name)
    return model


def take_adapter(model: Any, folder: Path, name: str, named: str) -> PeftModel:
    """As `load_adapter`, of one from elsewhere that a setting names, such as `run.start=…`: that is not ours to make again.

    Raises:
        UserError: the saved tensors are damaged, or do not fit the base.
    """
    try:
        return load_adapter(model, folder, name)
    except Exception as error:  # PEFT and PyTorch have an error of their own for each way in which it does not fit
        if is_devices(error):
            raise
        reason = shortened(first_line(error).partition("; ")[0], 120)
        raise UserError(f"{named} cannot be taken ({reason}); name another adapter, or save this one anew") from error


def begin_adapter(model: Any, start: Path | None, name: str, settings: LoraSettings) -> PeftModel:
    """Puts a role's adapter onto the bare base: that in the folder `start`, or a fresh one, under which the base is as it is.

    Raises:
        UserError: as `load_adapter` and `add_lora`.
    """
    return load_adapter(model, start, name) if start else add_lora(model, settings, "CAUSAL_LM", name)


def load_policies(model: Any, run: Run, policies: Iterable[str]) -> PeftModel:
    """The base with the adapter of each of a run's `policies` under its role.

    Raises:
        UserError: an adapter is damaged, or does not fit the base.
    """
    for policy in (POLICIES[name] for name in policies):
        if policy.stage and policy.role:
            model = load_adapter(model, run.stage(policy.stage) / "adapter", policy.role)
    return model


def copy_lora(model: PeftModel, folder: Path, name: str) -> None:
    """Sets the LoRA tensors of adapter `name` to those saved in `folder`; a score head that is saved there is ignored.

    Raises:
        UserError: the saved tensors are damaged, or not those of the adapter.
    """
    with stage_file(folder / ADAPTER_WEIGHTS, folder.parent):
        tensors = load_file(folder / ADAPTER_WEIGHTS)
    weights = {_module_key(key, name): tensor for key, tensor in tensors.items() if "lora_" in key}
    expected = {key for key in model.state_dict() if "lora_" in key and f".{name}." in key}
    if weights.keys() != expected:
        raise UserError(f"the adapter in {folder} does not fit the base model; make it again with {switch('force')}")
    model.load_state_dict(weights, strict=False)


SHOWS = 1e-8
"""The least change of an adapter's weight that shows. An adapter adds B·A·x to its layer's output W·x; A begins at the size
of W, so that a smaller B, which begins at 0, is lost in float32's rounding of the sum (6e-8 of it)."""


def unmoved(folder: Path, start: Path | None = None) -> list[str]:
    """A sentence where training moved no weight of the adapter in `folder`, which began as that in `start`, or at zero, by
    more than `SHOWS`."""
    tensors, before = (load_file(path / ADAPTER_WEIGHTS) if path else {} for path in (folder, start))
    loras = {key: tensor for key, tensor in tensors.items() if "lora_" in key}
    trained = (key for key in loras if start or "lora_B" in key)
    if any((loras[key].float() - before.get(key, torch.zeros(())).float()).abs().max() > SHOWS for key in trained):
        return []
    place = f"{folder.parent.name.lstrip('.')}/{folder.name}"
    why = f"by more than {SHOWS}, which no output would show: the learning rate is too low, or no gradient reached them"
    return [see("The policy did not move", f"training moved none of the {len(loras)} tensors of {place} {why}")]


@contextmanager
def stage_file(path: Path, stage: Path) -> Iterator[None]:
    """Inside, `path` in the folder of a stage is read.

    Raises:
        UserError: in place of any error inside.
    """
    try:
        yield
    except Exception as error:  # each way in which a file is damaged has an error of its own
        raise UserError(
            f"{path} is damaged ({first_line(error)}); delete the folder {stage} and make the stage again"
        ) from None


def _module_key(key: str, name: str) -> str:
    """PEFT saves `….lora_A.weight` and holds `….lora_A.<adapter>.weight`."""
    module, kind = key.rsplit(".", 1)
    return f"{module}.{name}.{kind}"


class _InPlace(LoraVariant):
    """Plain LoRA, added to the layer's output by one matrix product in the layer's own precision.

    PEFT multiplies, scales and adds: three passes over an output that is far larger than the adapter. The output is the
    layer's own and no gradient needs it, so it can be added to where it is.

    In bfloat16 PEFT would also take what the layer reads to the adapter's float32. Here the adapter is read in bfloat16
    instead, and its weights and their gradients stay in float32, so that steps far smaller than bfloat16's add up.
    """

    @staticmethod
    def forward(module: Any, active_adapter: str, x: torch.Tensor, result: torch.Tensor, **_: Any) -> torch.Tensor:
        down, up = module.lora_A[active_adapter], module.lora_B[active_adapter]
        x = module.lora_dropout[active_adapter](x.to(result.dtype))
        low, weight = functional.linear(x, down.weight.to(x.dtype)), up.weight.to(x.dtype)
        scaling = module.scaling[active_adapter]
        if up.bias is not None:
            plain: torch.Tensor = result + functional.linear(low, weight, up.bias.to(x.dtype)) * scaling
            return plain
        in_place: torch.Tensor = _AddProduct.apply(result, low, weight, scaling)
        return in_place


class _AddProduct(torch.autograd.Function):
    """`result + scaling · low @ weight.T`, written into `result`.

    The backward pass is ours, since autograd copies the gradient of a view that was written to.


    Shapes: `result` `[…, out]`, `low` `[…, r]`, `weight` `[out, r]`.
    """

    @staticmethod
    def forward(
        ctx: Any, result: torch.Tensor, low: torch.Tensor, weight: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        ctx.save_for_backward(low, weight)
        ctx.scaling = scaling
        ctx.mark_dirty(result)
        result.view(-1, result.shape[-1]).addmm_(low.reshape(-1, low.shape[-1]), weight.T, alpha=scaling)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, None]:
        low, weight = ctx.saved_tensors
        (by_sum,) = gradients
        rows = by_sum.reshape(-1, by_sum.shape[-1])
        by_low = (rows @ (weight * ctx.scaling)).view_as(low)
        by_weight = (low.reshape(-1, low.shape[-1]) * ctx.scaling).T @ rows  # this way round it is twice as fast
        return by_sum, by_low, by_weight.T, None


def add_in_place(model: PeftModel, name: str) -> None:
    """Makes adapter `name` cheaper to run: it computes the same by `_InPlace`, which PEFT takes as a variant of LoRA.

    PEFT then casts no layer's input. So every adapter of a bfloat16 model has to come through here, as all do that this
    module loads.
    """
    for module in model.modules():
        if isinstance(module, LoraLayer) and name in module.lora_A:
            module.lora_variant[name] = _InPlace()
            module.cast_input_dtype_enabled = False


def reference(model: PeftModel) -> str | None:
    """The adapter under which the model is the reference; None: it has none, and the bare base is that."""
    return "reference" if "reference" in model.peft_config else None


@contextmanager
def adapter(model: PeftModel, name: str | None) -> Iterator[None]:
    """The base under another role's adapter (None: bare) inside the block, without gradients, and back afterwards."""
    before = model.active_adapter
    with torch.no_grad():
        if name is None:
            with model.disable_adapter():
                yield
        else:
            model.set_adapter(name)
            try:
                yield
            finally:
                model.set_adapter(before)
    model.set_adapter(before)


@contextmanager
def training(model: PeftModel, role: str, back: str) -> Iterator[None]:
    """Activates the trainable adapter `role`, then `back` again; a whole forward and backward pass belong inside."""
    model.set_adapter(role)
    try:
        yield
    finally:
        model.set_adapter(back)
