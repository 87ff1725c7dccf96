"""What each stage needs on the device, role by role, from the model's `config.json` alone: no weights, no torch, a second.

    Need("sft", at="loss", roles={"base": 2.7e9, "adapters": 1.3e8, …, "logits": 7.8e8})

It is arithmetic over what this project's stages hold at their fullest moments. The tensors counted are those that were seen
to be alive there, operation by operation, on Llama and Qwen3 models; other decoders are taken for such with their own widths.
`docs/memory.md` has the plan beside measured peaks. Sizes are in bytes unless said otherwise.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlrecipes.before.decoder import Decoder, Linears, decoder, read_config
from rlrecipes.errors import UserError
from rlrecipes.profile import Profile
from rlrecipes.recipe import unknown
from rlrecipes.reward.source import model_beside
from rlrecipes.run.stages import phases

GIB = 1 << 30


ROLES = ("base", "beside", "adapters", "optimizer", "KV cache", "activations", "logits", "reserve")
"""What the memory is for. `beside` is a reward model that is no adapter of the base; `optimizer` holds gradients too;
`reserve` is what is not a tensor."""


RESERVE = {"cpu": 0, "cuda": int(0.75 * GIB)}
"""CUDA context, cuBLAS workspaces and rounding of the allocator: a usual size, not measured by us."""


AT_ONCE = {"cpu": 1 << 21, "cuda": 1 << 27}
"""Logits that `likelihood` holds at a time."""


SFT_AT_ONCE = 256
"""Tokens whose logits `trl.SFTTrainer` (`chunked_nll`) holds at a time."""


SMALL = 4096
"""Numbers in a tensor below which bitsandbytes' 8-bit optimizers keep it in 32 bits."""


CARDS = {
    **{"rtx3060": 12.0, "rtx4060ti": 16.0, "rtx4080": 16.0, "rtx3090": 24.0, "rtx4090": 24.0, "rtx5090": 31.8},
    **{"t4": 15.0, "v100": 16.0, "a10": 22.5, "l4": 22.5, "a6000": 48.0, "l40s": 45.0, "a100-40": 40.0},
    **{"a100": 80.0, "h100": 79.6, "h200": 140.4},
}
"""Memory in GiB as `nvidia-smi` shows it, error correction on where it is the default."""


# what is planned


@dataclass(frozen=True)
class Lengths:
    """Tokens of the longest row."""

    prompt: int
    answer: int
    padded: bool = True
    """Rows differ in length, so attention needs a mask."""

    @property
    def whole(self) -> int:
        return self.prompt + self.answer


@dataclass(frozen=True)
class Need:
    """What one phase of a stage holds at its fullest moment."""

    phase: str
    """`sft`, `reward`, `ppo rollout`, `ppo update` or `evaluate`."""
    at: str
    """The moment."""
    roles: Mapping[str, float]
    """Bytes by the names of `ROLES`."""

    @property
    def total(self) -> float:
        return sum(self.roles.values())


BATCH = {name: phase.batch for name, phase in phases().items()}
"""The setting that a phase's need grows with."""


def lengths(shape: Decoder, profile: Profile) -> Lengths:
    """The longest rows that the profile lets through; where it leaves the answers' length to the data, half of a row.

    Raises:
        UserError: there is no room for a prompt and an answer.
    """
    window = min(profile.model.max_length, shape.positions)
    if window < 2:
        limit = "model.max_length" if profile.model.max_length < 2 else "the model's max_position_embeddings"
        raise UserError(f"{limit} is {window}, which leaves no room for a prompt and an answer; take 2 at least")
    answer = min(profile.ppo.response_length or window // 2, window - 1)
    return Lengths(window - answer, answer)


def needs(
    config: Mapping[str, Any],
    profile: Profile,
    longest: Lengths | None = None,
    device: str = "cuda",
    learned: bool = True,
) -> list[Need]:
    """Every phase's need at its fullest moment, in the order in which they run.

    Raises:
        UserError: the configuration is none that we can plan for.
    """
    return [max(phase, key=_total) for phase in moments(config, profile, longest, device, learned).values()]


def moments(
    config: Mapping[str, Any],
    profile: Profile,
    longest: Lengths | None = None,
    device: str = "cuda",
    learned: bool = True,
) -> dict[str, list[Need]]:
    """The moments of each phase that may be its fullest; without a learned reward there is no reward stage.

    Raises:
        UserError: the configuration is none that we can plan for, its window too short, or it has no such place for adapters.
    """
    shape = decoder(config, profile.model.name)
    if shape.known:
        _check_targets(shape, profile)
    sizes = _Sizes(shape, profile, longest or lengths(shape, profile), device, learned)
    sizes = dataclasses.replace(sizes, beside=_beside(sizes))
    by_phase: dict[str, Callable[[_Sizes], Iterator[Need]]] = {
        "sft": _sft,
        "reward": _reward,
        "ppo rollout": _rollout,
        "ppo update": _update,
        "evaluate": _evaluate,
    }
    return {phase: list(found(sizes)) for phase, found in by_phase.items() if phase != "reward" or learned}


def _targets(profile: Profile) -> list[str]:
    return [name.strip() for name in profile.lora.target_modules.split(",")]


def _check_targets(shape: Decoder, profile: Profile) -> None:
    layers = [name for group in shape.blocks for name in group.outputs]
    for name in _targets(profile):
        if name not in ("all-linear", *layers):
            others = f"there are {', '.join(dict.fromkeys(layers))}"
            raise UserError(f"lora.target_modules: {unknown('linear layer', name, ['all-linear', *layers], others)}")


def _beside(sizes: _Sizes) -> _Sizes | None:
    """The reward model that `reward.model` loads beside the base, held and read as the base is; None without one."""
    profile = sizes.profile
    name = model_beside(profile) if sizes.learned else None
    if name is None:
        return None
    own = dataclasses.replace(profile, model=dataclasses.replace(profile.model, name=name))
    return dataclasses.replace(sizes, shape=decoder(read_config(own), name), profile=own)


def _total(need: Need) -> float:
    return need.total


def largest_batch(
    config: Mapping[str, Any], profile: Profile, phase: str, card: float, learned: bool = True, most: int = 4096
) -> int:
    """The largest value of the phase's batch setting (`BATCH`) whose need is at most `card` bytes; 0 if not even 1 is.

    A rollout is never larger than a batch of episodes.
    """
    table, key = BATCH[phase].split(".")
    if phase == "ppo rollout":
        most = profile.ppo.per_device_train_batch_size * profile.ppo.gradient_accumulation_steps

    def fits(batch: int) -> bool:
        settings = dataclasses.replace(getattr(profile, table), **{key: batch})
        found = needs(config, dataclasses.replace(profile, **{table: settings}), learned=learned)
        return next(need.total for need in found if need.phase == phase) <= card

    low, high = 0, most + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


# the arithmetic


@dataclass(frozen=True)
class _Sizes:
    """Sizes of the parts, from which the moments are put together."""

    shape: Decoder
    profile: Profile
    longest: Lengths
    device: str
    learned: bool
    beside: _Sizes | None = None
    """A reward model that is no adapter of this base."""

    @property
    def width(self) -> int:
        """Bytes of a number in the base's precision; adapters are in float32 whatever it is."""
        return {"float32": 4, "bfloat16": 2}[self.profile.model.dtype]

    def base(self, head: bool = True) -> float:
        """The frozen weights; a reward model has no language-model head."""
        shape, width = self.shape, self.width
        linear: float = shape.layers * shape.linear
        if self.profile.model.quantization == "nf4":
            # 4 bits; per 64 weights a scale of 8 bits, and per 256 scales one of 32 (QLoRA, arXiv 2305.14314, section 3)
            linear = linear * (0.5 + 1 / 64 + 4 / 64 / 256)
        else:
            linear *= width
        tables = 1 if shape.tied or not head else 2
        return linear + width * shape.hidden * (tables * shape.vocabulary + 2 * shape.layers + 1)

    def targeted(self, group: Linears) -> list[str]:
        names = _targets(self.profile)
        return [name for name in group.outputs if names == ["all-linear"] or name in names]

    @property
    def adapter(self) -> float:
        """Numbers in one adapter."""
        r, layers = self.profile.lora.r, self.shape.layers
        return layers * sum(
            r * (group.width + group.outputs[name]) for group in self.shape.blocks for name in self.targeted(group)
        )

    def optimizer(self, settings: Any, adapters: int) -> dict[str, float]:
        """Gradients and moments of the trained adapters."""
        numbers = adapters * self.adapter
        moments = 8.0
        if "8bit" in settings.optim and self.profile.lora.r * self.shape.hidden >= SMALL:
            moments = 2 * (1 + 4 / 256)
        elif settings.optim == "sgd":
            moments = 0.0
        elif settings.optim == "adafactor":
            moments = 4 / self.profile.lora.r
        return {"optimizer": numbers * (4 + moments)}

    # One token in one layer, in bytes.

    def attention(self, per_sequence: int, padded: bool, dropout: bool) -> float:
        """Kept by a layer's norms and attention for the way back."""
        shape, width = self.shape, self.width
        kept = 2 * 4.0 * shape.hidden  # the norms' inputs, in float32
        kept += (4 if shape.normed else 0) * (shape.queries + shape.keys)
        keys = shape.queries if padded else shape.keys  # repeated for every query head where there is a mask
        kept += width * (2 * shape.queries + 2 * keys) + 4 * shape.heads
        kept += width * per_sequence if padded else 0  # the mask as numbers, anew in every layer
        if self.profile.model.attention == "eager":  # attention's weights, and what their softmax keeps
            kept += (width + 4) * shape.heads * per_sequence
        read, out = shape.blocks[:2]
        if width == 4 and not dropout and self.targeted(out):
            kept -= 4 * out.width  # what LoRA reads there is attention's output itself
        return kept + self.inputs(read, dropout) + self.inputs(out, dropout)

    def mlp(self, dropout: bool) -> float:
        """Kept by a layer's MLP for the way back."""
        middle = self.width * self.shape.intermediate * (3 if self.shape.gated else 2)
        return middle + sum(self.inputs(group, dropout) for group in self.shape.blocks[2:])

    def inputs(self, group: Linears, dropout: bool) -> float:
        """Kept by LoRA: what it reads, in float32, and its narrow middle. A frozen linear layer keeps nothing."""
        count = len(self.targeted(group))
        copies = count if self.width != 4 or dropout else min(1, count)  # one for all where nothing is cast or dropped
        masks = count * (4 if self.device == "cpu" else 1) if dropout else 0
        return float((4 * copies + masks) * group.width + 4 * self.profile.lora.r * count)

    @property
    def backward(self) -> float:
        """Added at the fullest moment of a layer whose activations are kept.

        In float32 that is on the way back through the MLP: its middle's gradient by both paths and their sum, one saved
        tensor gone. In bfloat16 it is on the way there: LoRA's product, twice, beside what it is added to.
        """
        shape = self.shape
        if self.width == 4:
            return 8.0 * shape.intermediate
        return (4.0 + self.mixed) * shape.intermediate + 4.0 * shape.hidden

    @property
    def forward(self) -> float:
        """Alive at once in a layer without gradients, at its fullest: the MLP. Where it is in bfloat16, LoRA is not."""
        if self.width == 4:
            return 12.0 * self.shape.intermediate + 16.0 * self.shape.hidden
        return (12.0 + self.mixed) * self.shape.intermediate + 12.0 * self.shape.hidden

    @property
    def mixed(self) -> int:
        """A CPU adds float32 to bfloat16 by way of a float32 copy; a GPU does without."""
        return 4 if self.device == "cpu" and self.width != 4 else 0

    @property
    def dequantized(self) -> float:
        """The largest linear layer in the base's precision, as bitsandbytes makes it for a product."""
        return float(self.width * self.shape.largest) if self.profile.model.quantization == "nf4" else 0.0

    def trained(
        self,
        rows: int,
        tokens: int,
        padded: bool,
        checkpointed: bool,
        dropout: float = 0.0,
        read: float = 1.0,
    ) -> tuple[float, float]:
        """Activations of a forward pass with gradients, and what the way back through a layer adds to them.

        `read` is the share of tokens whose last states are read: the last MLP runs on those alone (`models.read_at`).
        """
        shape, number = self.shape, rows * tokens
        mlp = number * self.mlp(dropout > 0)
        layer = number * self.attention(tokens, padded, dropout > 0) + mlp
        back = number * self.backward
        ends = number * shape.hidden * (4 + self.width)  # the last norm's input, and its output
        ends += rows * tokens * tokens if padded else 0  # the mask
        if checkpointed:
            return shape.layers * number * shape.hidden * self.width + ends, layer + back
        last = layer - (1 - read) * mlp
        # Either the last MLP is gone through, or the one before it, when the last layer's activations are gone.
        return (shape.layers - 1) * layer + last + ends, max(read * back, back - last if shape.layers > 1 else 0)

    def cache(self, rows: int, tokens: int) -> float:
        return 2.0 * self.shape.layers * self.shape.keys * self.width * rows * tokens

    def scoring(self, rows: int) -> float:
        """Activations of a pass of whole rows without gradients."""
        return rows * self.longest.whole * self.forward + self.dequantized


def _static(sizes: _Sizes, adapters: int, head: bool = True) -> dict[str, float]:
    return {
        "base": sizes.base(head),
        "adapters": 4 * adapters * sizes.adapter,
        "reserve": RESERVE[sizes.device],
    }


def _rewarded(sizes: _Sizes, adapters: int) -> dict[str, float]:
    """The base with so many adapters, and the learned reward: one more adapter, or a model beside."""
    if sizes.beside is None:
        return _static(sizes, adapters + sizes.learned)
    return _static(sizes, adapters) | {"beside": sizes.beside.base(head=False)}


def _sft(sizes: _Sizes) -> Iterator[Need]:
    settings, shape = sizes.profile.sft, sizes.shape
    rows, tokens = settings.per_device_train_batch_size, sizes.longest.whole
    fixed = _static(sizes, 1) | sizes.optimizer(settings, 1)
    kept, back = sizes.trained(
        rows, tokens, sizes.longest.padded, settings.gradient_checkpointing, sizes.profile.lora.lora_dropout
    )
    picked = 2 * rows * tokens * shape.hidden * sizes.width  # the answers' states, put first
    logits = 4 * 4 * min(SFT_AT_ONCE, rows * tokens) * shape.vocabulary
    if sizes.width != 4:
        logits += 4 * shape.vocabulary * shape.hidden  # TRL takes the whole output layer in float32
    yield Need("sft", "loss", fixed | {"activations": kept + picked, "logits": logits})
    yield Need("sft", "backward", fixed | {"activations": kept + back})


def _reward(sizes: _Sizes) -> Iterator[Need]:
    settings = sizes.profile.reward
    rows, tokens = 2 * settings.per_device_train_batch_size, sizes.longest.whole
    if sizes.beside is not None:
        fixed = {"beside": sizes.beside.base(head=False), "reserve": RESERVE[sizes.device]}
        yield Need("reward", "scoring", fixed | {"activations": sizes.beside.scoring(rows)})
        return
    fixed = _static(sizes, 1, head=False)
    if settings.model is None:
        fixed |= sizes.optimizer(settings, 1)
        kept, back = sizes.trained(
            rows, tokens, sizes.longest.padded, settings.gradient_checkpointing, sizes.profile.lora.lora_dropout
        )
        yield Need("reward", "backward", fixed | {"activations": kept + back})
    yield Need("reward", "scoring", fixed | {"activations": sizes.scoring(rows)})


def _generation(sizes: _Sizes, phase: str, fixed: Mapping[str, float], rows: int) -> Iterator[Need]:
    """`sampling.sample` on `rows` prompts: reading them, and drawing the last token."""
    shape, longest = sizes.shape, sizes.longest
    numbers = rows * longest.prompt
    room = sizes.cache(rows, longest.whole)
    # Memory that nobody has written to is not resident on a CPU.
    written = sizes.cache(rows, longest.prompt) if sizes.device == "cpu" else room
    reading = numbers * sizes.forward + sizes.dequantized
    if longest.padded:
        reading += rows * longest.prompt**2 * (1 + sizes.width)
    yield Need(phase, "reading prompts", {**fixed, "KV cache": written, "activations": reading})
    drawing = rows * shape.vocabulary * (3 * 4 + (2 if sizes.width == 2 else 0))
    one = rows * sizes.forward + sizes.dequantized
    yield Need(phase, "drawing tokens", {**fixed, "KV cache": room, "activations": one, "logits": drawing})


def _rollout(sizes: _Sizes) -> Iterator[Need]:
    settings, shape, longest = sizes.profile.ppo, sizes.shape, sizes.longest
    batch = settings.per_device_train_batch_size * settings.gradient_accumulation_steps
    rows = min(settings.local_rollout_forward_batch_size, batch)
    micro = min(settings.per_device_train_batch_size, rows)
    trained = 1 + (settings.value == "adapter")
    fixed = _rewarded(sizes, 1 + trained) | sizes.optimizer(settings, trained)
    yield from _generation(sizes, "ppo rollout", fixed, rows)
    states = rows * longest.answer * shape.hidden * sizes.width
    yield Need("ppo rollout", "reading answers", fixed | {"activations": states + sizes.scoring(micro)})
    logits = 2 * 4 * min(AT_ONCE[sizes.device], rows * longest.answer * shape.vocabulary)
    yield Need("ppo rollout", "log-probabilities", fixed | {"activations": 2 * states, "logits": logits})


def _update(sizes: _Sizes) -> Iterator[Need]:
    settings, shape, longest = sizes.profile.ppo, sizes.shape, sizes.longest
    rows, tokens = settings.per_device_train_batch_size, longest.whole - 1
    trained = 1 + (settings.value == "adapter")
    fixed = _rewarded(sizes, 1 + trained) | sizes.optimizer(settings, trained)
    kept, back = sizes.trained(rows, tokens, False, settings.gradient_checkpointing, read=longest.answer / tokens)
    states = rows * longest.answer * shape.hidden * sizes.width
    at_once = min(AT_ONCE[sizes.device], rows * longest.answer * shape.vocabulary)
    # The logits, in float32, and their gradient, in the base's type as well where it is another; once more where the
    # temperature divides them.
    logits = at_once * (8 + sizes.width % 4 + 4 * (settings.temperature != 1))
    yield Need("ppo update", "log-probabilities", fixed | {"activations": kept + 3 * states, "logits": logits})
    yield Need("ppo update", "backward", fixed | {"activations": kept + back})
    if sizes.beside is not None:
        yield Need("ppo update", "scoring", fixed | {"activations": sizes.beside.scoring(rows)})


def _evaluate(sizes: _Sizes) -> Iterator[Need]:
    rows = sizes.profile.evaluate.batch_size
    fixed = _rewarded(sizes, 2)
    yield from _generation(sizes, "evaluate", fixed, rows)
    if sizes.learned:
        scoring = (sizes.beside or sizes).scoring(rows)
        yield Need("evaluate", "scoring", fixed | {"activations": scoring})


# the answer to `plan`


def plan(profile: Profile, learned: bool, card: str | None = None) -> str:
    """The needs as a table in GiB, a line for each moment; with a card, whether each phase fits and its largest batch.

    Raises:
        UserError: the card or the model is none that we know.
    """
    config = read_config(profile)
    shape = decoder(config, profile.model.name)
    card = card or profile.memory.card
    room = gib(card) if card else None
    longest = lengths(shape, profile)
    half = "" if profile.ppo.response_length else " (half of a row: ppo.response_length=0 leaves it to the data)"
    found = moments(config, profile, longest, "cuda" if room else "cpu", learned)
    used = {role for needed in found.values() for need in needed for role, size in need.roles.items() if size}
    shown = [role for role in ROLES if (role != "reserve" or room) and (role != "beside" or role in used)]
    heads = ["GiB", "moment", *shown, "total", *(["fits", f"largest batch in {room:g} GiB"] if room else [])]
    rows = []
    for needed in found.values():
        fullest = max(needed, key=_total)
        for need in needed:
            rows.append(
                _row(need, shown, _verdict(config, profile, need, room, learned) if need is fullest and room else [])
            )
    return "\n".join(
        [
            f"{profile.name}: {profile.model.name}, {shape.kind}, {profile.model.quantization}, {profile.model.dtype}, "
            f"on {f'a card of {room:g} GiB' if room else 'the CPU (name a card with CARD=…)'}",
            *([] if shape.known else [_taken_for_a_llama(shape)]),
            f"rows of at most {longest.whole} tokens, answers of at most {longest.answer}{half}",
            "",
            *_aligned([heads, *rows]),
        ]
    )


def _taken_for_a_llama(shape: Decoder) -> str:
    return f"taken for a Llama: how '{shape.kind}' is built is not known here, so all of this may be far off"


def gib(card: str) -> float:
    """A card's memory in GiB, from its name or a number.

    Raises:
        UserError: it is neither.
    """
    if card.lower() in CARDS:
        return CARDS[card.lower()]
    try:
        room = float(card)
    except ValueError:
        names = f"give its GiB, or one of {', '.join(CARDS)}"
        raise UserError(unknown("card", card, list(CARDS), names)) from None
    if not (math.isfinite(room) and room > 0):
        raise UserError(f"a card of {card} GiB is none; give a number above 0, or one of {', '.join(CARDS)}")
    return room


def _row(need: Need, shown: Sequence[str], verdict: Sequence[str]) -> list[str]:
    sizes = [f"{need.roles.get(role, 0) / GIB:.2f}" for role in shown]
    return [need.phase, need.at, *sizes, f"{need.total / GIB:.2f}", *verdict]


def _verdict(config: Mapping[str, Any], profile: Profile, need: Need, room: float, learned: bool) -> list[str]:
    """Whether a phase fits, and the largest batch that does."""
    name = BATCH[need.phase]
    table, key = name.split(".")
    largest = largest_batch(config, profile, need.phase, room * GIB, learned)
    told = f"{name}={largest}" if largest else f"not even {name}=1"
    return ["yes" if need.total <= room * GIB else "NO", f"{told} (now {getattr(getattr(profile, table), key)})"]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns under their heads: words to the left, numbers to the right."""
    count = len(rows[0])
    full = [[*row, *[""] * (count - len(row))] for row in rows]
    widths = [max(map(len, column)) for column in zip(*full, strict=True)]
    left = {0, 1, count - 1}
    lines = []
    for row in full:
        cells = [c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
    return lines
