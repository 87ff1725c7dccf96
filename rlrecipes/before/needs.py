"""The memory of each phase of a stage at the moments that may be its fullest, role by role.

    Need("sft", at="loss", roles={"base": 2.7e9, "adapters": 1.3e8, …, "logits": 7.8e8})

It is arithmetic over the tensors that this project's stages hold. We saw which are alive at each operation on Llama, Qwen3
and Mixtral models, and assume that other decoders run alike with their own widths. Sizes are in bytes unless a docstring
says otherwise; `docs/memory.md` compares them with measured peaks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from rlrecipes.before.groups import Rows, in_rows
from rlrecipes.before.parts import RESERVE, Parts
from rlrecipes.before.shape import Lengths, Shape, lengths
from rlrecipes.profile import SFT, PolicySettings, Profile, TrainingSettings, algorithms, sampling_algorithms

ROLES = ("base", "beside", "copy", "adapters", "optimizer", "KV cache", "activations", "logits", "reserve")
"""What the memory is for. `beside` is a reward model that is no adapter of the base; `copy` is the policy as plain matrices
while it writes; `optimizer` holds gradients too; `reserve` is for all that is no tensor."""

AT_ONCE = {"cpu": 1 << 21, "cuda": 1 << 27}
"""Logits that `likelihood` holds at a time."""

READ_AT_ONCE = {"cpu": 1 << 40, "cuda": 1 << 14}
"""Tokens of prompts that `sampling` reads at a time."""

SFT_AT_ONCE = 256
"""Tokens whose logits `trl.SFTTrainer` (`chunked_nll`) holds at a time."""


@dataclass(frozen=True)
class Need:
    """What one phase of a stage holds at one moment."""

    phase: str
    """A phase of the table of stages."""
    at: str
    """The moment."""
    roles: Mapping[str, float]
    """Bytes by the names of `ROLES`."""

    @property
    def total(self) -> float:
        return sum(self.roles.values())


def moments(
    shape: Shape, profile: Profile, longest: Lengths | None = None, device: str = "cuda", learned: bool = True
) -> dict[str, list[Need]]:
    """The moments of each phase that may be its fullest, in order. Without a learned reward there is no phase
    `reward`, and without a judge that is trained none of it.

    Raises:
        UserError: the rows have no room for a prompt and an answer.
    """
    sizes = Parts(shape, profile, longest or lengths(shape, profile), device, learned)
    by_phase: dict[str, Callable[[Parts], Iterator[Need]]] = {
        "sft": partial(_imitation, profile.sft, "sft"),
        "reward": _reward,
        "judge": _judge,
        **{
            f"{table} {part}": partial(needs, getattr(profile, table))
            for table in sampling_algorithms(profile)
            for part, needs in (("rollout", _rollout), ("update", _update))
        },
        "dpo": _dpo,
        "distill rollout": _drawing,
        "distill": partial(_imitation, profile.distill, "distill"),
        "answers": _answers,
        "evaluate": _evaluate,
    }
    there = {
        "sft": profile.run.start == SFT,
        "reward": learned,
        "judge": sizes.judged,
        "dpo": "dpo" in algorithms(profile),
        **dict.fromkeys(("distill rollout", "distill"), "distill" in algorithms(profile)),
    }
    return {phase: list(needs(sizes)) for phase, needs in by_phase.items() if there.get(phase, True)}


def fullest(needs: list[Need]) -> Need:
    return max(needs, key=lambda need: need.total)


# The moments of each phase.


def _imitation(settings: TrainingSettings, phase: str, sizes: Parts) -> Iterator[Need]:
    """SFT on demonstrations, or on a policy's own answers."""
    shape = sizes.shape
    rows, tokens = settings.per_device_train_batch_size, sizes.longest.whole
    fixed = sizes.static(1) | sizes.optimizer(settings, 1)
    activations, back = sizes.trained(
        Rows(rows, tokens, sizes.longest.padded), settings.gradient_checkpointing, sizes.profile.lora.lora_dropout
    )
    answers = 2 * rows * tokens * shape.hidden * sizes.width  # the answers' states, put first
    logits = 4 * 4 * min(SFT_AT_ONCE, rows * tokens) * shape.vocabulary
    if sizes.width != 4:
        logits += 4 * shape.vocabulary * shape.hidden  # TRL takes the whole output layer in float32
    yield Need(phase, "loss", fixed | {"activations": activations + answers, "logits": logits})
    yield Need(phase, "backward", fixed | {"activations": activations + back})


def _reward(sizes: Parts) -> Iterator[Need]:
    settings = sizes.profile.reward
    rows, tokens = 2 * settings.per_device_train_batch_size, sizes.longest.whole
    scoring = {"activations": sizes.scoring(rows)}
    if sizes.shape.beside is not None:
        fixed = {"beside": sizes.scorer.base(head=False), "reserve": RESERVE[sizes.device]}
        yield Need("reward", "scoring", fixed | scoring)
        return
    fixed = sizes.static(1, head=False)
    if settings.model is None:
        fixed |= sizes.optimizer(settings, 1)
        activations, back = sizes.trained(
            Rows(rows, tokens, sizes.longest.padded), settings.gradient_checkpointing, sizes.profile.lora.lora_dropout
        )
        yield Need("reward", "backward", fixed | {"activations": activations + back})
    yield Need("reward", "scoring", fixed | scoring)


def _judge(sizes: Parts) -> Iterator[Need]:
    reward = replace(sizes.profile.reward, model=None)
    own = replace(sizes, shape=replace(sizes.shape, beside=None), profile=replace(sizes.profile, reward=reward))
    yield from (replace(need, phase="judge") for need in _reward(own))


def _generation(sizes: Parts, phase: str, fixed: Mapping[str, float], rows: int, each: int = 1) -> Iterator[Need]:
    """`sampling.sample` of `rows` answers, so many for `each` prompt: while it reads prompts, and draws the last token."""
    longest = sizes.longest
    room = sizes.cache(rows, longest.whole)
    # On a CPU, memory is resident only once something is written to it.
    resident = sizes.cache(rows, longest.prompt) if sizes.device == "cpu" else room
    together = min(-(-rows // each), max(1, READ_AT_ONCE[sizes.device] // longest.prompt))
    reading = sizes.passed(together * longest.prompt)
    if longest.padded:
        reading += together * longest.prompt**2 * (1 + sizes.width)
    yield Need(phase, "reading prompts", {**fixed, "KV cache": resident, "activations": reading})
    # Logits and probabilities in float32, and the logits in the base's type where that is another.
    drawing = rows * sizes.shape.vocabulary * (2 * 4 + (2 if sizes.width == 2 else 0))
    yield Need(
        phase, "drawing tokens", {**fixed, "KV cache": room, "activations": sizes.passed(rows), "logits": drawing}
    )


def _trained(settings: PolicySettings) -> int:
    """Adapters that are trained: the policy, and a value function that has one of its own."""
    return 1 + (getattr(settings, "value", "") == "adapter")


def _rollout(settings: PolicySettings, sizes: Parts) -> Iterator[Need]:
    phase, shape, longest = f"{settings.table} rollout", sizes.shape, sizes.longest
    rows = min(settings.local_rollout_forward_batch_size, settings.batch)
    micro = min(settings.per_device_train_batch_size, rows)
    trained = _trained(settings)
    fixed = sizes.rewarded(1 + trained + sizes.watched(settings)) | sizes.optimizer(settings, trained)
    copy = {"copy": float(sizes.width * shape.linear)} if settings.dense_rollout == "always" else {}
    yield from _generation(sizes, phase, fixed | copy, rows, settings.answers_each)
    states = rows * longest.answer * shape.hidden * sizes.width
    reading = states + sizes.passed(in_rows(shape, settings, micro, longest.prompt, longest.answer).number)
    yield Need(phase, "reading answers", fixed | {"activations": reading})
    logits = 2 * 4 * min(AT_ONCE[sizes.device], rows * longest.answer * shape.vocabulary)
    yield Need(phase, "log-probabilities", fixed | {"activations": 2 * states, "logits": logits})
    if sizes.watched(settings):
        scored = sizes.passed(settings.per_device_train_batch_size * longest.whole)
        yield Need(phase, "judge", fixed | {"activations": scored})


def _update(settings: PolicySettings, sizes: Parts) -> Iterator[Need]:
    phase, trained = f"{settings.table} update", _trained(settings)
    fixed = sizes.rewarded(1 + trained + sizes.watched(settings)) | sizes.optimizer(settings, trained)
    # One more copy of the logits where the temperature divides them.
    copies = 4 * (settings.temperature != 1)
    micro, answer = settings.per_device_train_batch_size, sizes.longest.answer
    each = None if settings.mini_batches == 1 else 1  # those of a part of a batch may all be to different prompts
    rows = in_rows(sizes.shape, settings, micro, sizes.longest.prompt - 1, answer, each)
    yield from _step(sizes, phase, fixed, settings, rows, micro * answer, copies)
    if sizes.shape.beside is not None:
        yield Need(phase, "scoring", fixed | {"activations": sizes.scoring(micro)})


def _step(
    sizes: Parts, phase: str, fixed: Mapping[str, float], settings: Any, rows: Rows, read: int, copies: int = 0
) -> Iterator[Need]:
    """A forward and backward on rows, by the log-probabilities of `read` tokens of all."""
    shape, checkpointed, share = sizes.shape, settings.gradient_checkpointing, min(1.0, read / rows.number)
    activations, back = sizes.trained(rows, checkpointed, read_share=share)
    states = read * shape.hidden * sizes.width
    at_once = min(AT_ONCE[sizes.device], read * shape.vocabulary)
    # The logits and their gradient in float32, and the gradient also in the base's type where that is another.
    logits = at_once * (8 + sizes.width % 4 + copies)
    yield Need(phase, "log-probabilities", {**fixed, "activations": activations + 3 * states, "logits": logits})
    yield Need(phase, "backward", {**fixed, "activations": activations + back})


def _dpo(sizes: Parts) -> Iterator[Need]:
    """A comparison has two rows. Its answers may be as long as a row, whatever those that are sampled may be.

    The reference is read before, without gradients or moments, which takes less.
    """
    settings = sizes.profile.dpo
    fixed = sizes.static(1) | sizes.optimizer(settings, 1)
    rows = Rows(2 * settings.per_device_train_batch_size, sizes.longest.whole - 1)
    yield from _step(sizes, "dpo", fixed, settings, rows, int(rows.number))


def _drawing(sizes: Parts) -> Iterator[Need]:
    """As `policy.best_answers` draws and scores answers."""
    settings, fixed = sizes.profile.distill, sizes.rewarded(1)
    rows, each = settings.local_rollout_forward_batch_size, settings.num_generations
    yield from _generation(sizes, "distill rollout", fixed, rows, each)
    scoring = {"activations": sizes.scoring(settings.per_device_train_batch_size)} if sizes.learned else {}
    yield Need("distill rollout", "scoring", fixed | scoring)


def _answers(sizes: Parts) -> Iterator[Need]:
    yield from _generation(sizes, "answers", sizes.static(2), sizes.profile.evaluate.batch_size)


def _evaluate(sizes: Parts) -> Iterator[Need]:
    fixed = sizes.rewarded(1 + sizes.judged)
    yield Need("evaluate", "scoring", fixed | {"activations": sizes.scoring(sizes.profile.evaluate.batch_size)})
