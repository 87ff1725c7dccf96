"""Checks of the machine and the model, made before the first stage takes an hour.

error: model.quantization=nf4 needs bitsandbytes, which is not installed; run: pip install -r requirements.txt, or …
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from shutil import which

import torch
from torch import nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, Trainer, TrainingArguments
from transformers.training_args import OptimizerNames

from rlrecipes.before.cards import without_bfloat16
from rlrecipes.data.split import LEAST_ASIDE, sample_by_hash, set_aside
from rlrecipes.errors import UserError, first_line, switch
from rlrecipes.job import Job
from rlrecipes.model.forward import device
from rlrecipes.model.loading import DTYPES, check_score_head, model_config
from rlrecipes.model.quantized import check_quantization
from rlrecipes.model.tokens import learned_rows, open_tokenizer, vocabulary
from rlrecipes.profile import SAMPLING, EvaluateSettings, ModelSettings, Profile, algorithms, takes_adapter
from rlrecipes.profile.load import by_hand
from rlrecipes.recipe import Comparison, Example, Rating, unknown
from rlrecipes.reward.agreement import readable
from rlrecipes.reward.judge import missing
from rlrecipes.reward.model import reader_beside
from rlrecipes.reward.source import find_reward_model, model_beside
from rlrecipes.run.folder import make
from rlrecipes.run.policies import check_shared, chosen
from rlrecipes.run.processes import several
from rlrecipes.run.stages import STAGES
from rlrecipes.text import shortened


def check_device(profile: Profile) -> None:
    """Refuses an unknown optimizer, and an optimizer, precision or quantization that this machine cannot do or make.

    Raises:
        UserError: the sentence says which and what to set instead.
    """
    if profile.memory.halve_on_oom and several() > 1:
        raise UserError(
            "memory.halve_on_oom=true has no effect on several processes, of which one may run out of memory and the others "
            "not; lower per_device_train_batch_size of the stage, or start more processes"
        )
    _check_memory(profile)
    _check_repeatable(profile)
    if profile.model.dtype == "bfloat16":
        _check_bfloat16()
    if profile.model.quantization == "nf4":
        _check_4bit(profile.model)
    for stage in ("sft", "reward", *algorithms(profile)):
        optimizer = getattr(profile, stage).optim
        if optimizer not in (known := [str(name.value) for name in OptimizerNames]):
            raise UserError(
                f"{stage}.optim: " + unknown("optimizer", optimizer, known, f"there are {', '.join(known)}")
            )
        _check_optimizer(f"{stage}.optim={optimizer}", optimizer, f"{stage}.optim=adamw_torch")


def check_aside(job: Job, pending: Collection[str]) -> None:
    """Refuses settings of the rows that are set aside while a stage trains, where somebody chose them and none can be.

    Raises:
        UserError: the sentence says which.
    """
    watched = [f"{stage}.{key}" for stage in SAMPLING for key in ("eval_every", "patience")]
    for name in ("sft.patience", "reward.patience", "dpo.patience", "distill.patience", *watched):
        stage, _, key = name.partition(".")
        settings = getattr(job.profile, stage)
        if stage not in pending or not by_hand(job.profile, name) or not _sets_aside(job, stage, pending):
            continue
        what, rows = _trained_on(job, stage)
        if not set_aside(rows, [row.prompt for row in rows])[1]:
            raise UserError(
                f"{name}={getattr(settings, key)} would have no effect: of {len(rows)} {what} none can be set aside for it, "
                f"which takes {10 * LEAST_ASIDE} at least; bring more, or leave it out"
            )


def check_lora(job: Job) -> None:
    """Refuses settings of `[lora]`, where somebody chose them, on a run that puts no adapter of its own on the base.

    Its policies begin at one from elsewhere, and neither a reward model nor a judge is trained beside them.

    Raises:
        UserError: with the first of them.
    """
    trained = job.recipe.reward.learned and job.profile.reward.model is None
    if not takes_adapter(job.profile) or trained or missing(job) is None:
        return
    for key, value in asdict(job.profile.lora).items():
        if by_hand(job.profile, f"lora.{key}"):
            raise UserError(
                f"lora.{key}={value} has no effect where run.start={job.profile.run.start} brings the adapter and no reward "
                "model is trained beside it; leave it out"
            )


def _sets_aside(job: Job, stage: str, pending: Collection[str]) -> bool:
    """Whether a stage sets rows aside where it has enough, and `_trained_on` is all that its settings are for."""
    if stage in SAMPLING:
        return bool(getattr(job.profile, stage).eval_every)
    more = stage == "reward" and (job.parts or "judge" in pending)  # rows that repeat, and rows of the judge's own
    return getattr(job.profile, stage).keep == "best" and not more


def _trained_on(job: Job, stage: str) -> tuple[str, Sequence[Example | Comparison | Rating]]:
    """What a stage's training rows are called, and these, some of which may be too long."""
    train = job.data.train
    if stage == "sft":
        return "demonstrations", learned_rows(train.demonstrations, job.profile.sft.learn)
    if stage in SAMPLING:
        return "prompts", train.prompts
    if stage == "distill":
        return "prompts", sample_by_hash(job.profile.distill.limit or len(train.prompts), train.prompts)
    if stage == "dpo" or job.objective == "pairwise":
        return "comparisons", train.comparisons
    return "ratings", train.ratings


def check_taken(job: Job) -> None:
    """Refuses a reward model from elsewhere of which nothing here can make a classifier, such as one with its own code, one
    that is quantized otherwise than the profile says, and one beside the base that is too short for every demonstration.

    Raises:
        UserError: with the reason.
    """
    source = find_reward_model(str(job.profile.reward.model))
    name = source.base or source.place
    try:
        check_score_head(name)
    except UserError as error:
        raise UserError(f"reward.model={source.name} cannot be used: {shortened(str(error), 200)}") from None
    check_quantization(name, model_config(name), job.profile.model.quantization)
    if model_beside(job.profile):
        readable(job, reader_beside(source), 1)


def check_model_fits(job: Job, name: str, pending: Collection[str]) -> None:
    """Refuses attention or a score head that the model lacks, adapters from elsewhere that stand on another base, an SFT
    adapter of another chat template, and a finished reward model with another vocabulary than the base's.

    `name` is the base model's; `pending` are the stages that have yet to run.

    Raises:
        UserError: the sentence says which and what to do.
    """
    _check_attention(name, job.profile.model)
    if "answers" in pending:
        check_shared(chosen(job.profile.evaluate.policies, job.run, job.profile.run.start), name)
    if "evaluate" in pending:
        check_encoders(job.profile.evaluate)
    learns = {"sft", "reward"} & set(pending) and job.recipe.reward.learned and job.profile.reward.model is None
    if ("judge" in pending or learns) and name == job.profile.model.name:
        check_score_head(name)
    if "sft" not in pending and pending != ["report"]:
        _check_template(job, name)
    if "reward" not in pending and any(stage == "evaluate" or STAGES[stage].climbs for stage in pending):
        _check_vocabulary(job, name)


def check_encoders(settings: EvaluateSettings) -> None:
    """Refuses the metrics BERTScore and COMET where their program or their model is not on this machine.

    Raises:
        UserError: with the sentence.
    """
    if folder := settings.bertscore:
        if find_spec("bert_score") is None:
            raise UserError(
                "evaluate.bertscore needs bert-score, which is not installed; run: pip install bert-score==0.3.13"
            )
        if not (Path(os.path.expanduser(folder)) / "config.json").is_file():
            raise UserError(
                f"evaluate.bertscore={folder} is no folder of a model with its config.json; nothing is fetched for it"
            )
    if place := settings.comet:
        path = Path(os.path.expanduser(place))
        if which("comet-score") is None:
            raise UserError(
                "evaluate.comet needs the command comet-score, which is not found; install unbabel-comet in an environment "
                "of its own, such as by pipx, and put its commands on the PATH"
            )
        if not (path.is_file() and path.suffix == ".ckpt") and not any(path.rglob("*.ckpt")):
            raise UserError(
                f"evaluate.comet={place} is no checkpoint and no folder with one (.ckpt); nothing is fetched for it"
            )


def _check_bfloat16() -> None:
    if torch.cuda.is_available() and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise without_bfloat16(torch.cuda.get_device_name())


def _import_bitsandbytes(setting: str, instead: str) -> None:
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        raise UserError(
            f"{setting} needs bitsandbytes, which is not installed; run: pip install -r requirements.txt, or set {instead}"
        ) from None
    except Exception as error:  # its native library may fail in any way
        raise UserError(
            f"{setting} needs bitsandbytes, which cannot be loaded ({first_line(error)}); "
            f"install it anew: pip install --force-reinstall -r requirements.txt, or set {instead}"
        ) from None


def _check_4bit(settings: ModelSettings) -> None:
    """Quantizes a small matrix on the device and multiplies by it, which shows a missing or broken library."""
    _import_bitsandbytes("model.quantization=nf4", "model.quantization=none")
    import bitsandbytes

    weight = torch.eye(64, dtype=DTYPES[settings.dtype], device=device())
    try:
        packed, state = bitsandbytes.functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
        product = bitsandbytes.matmul_4bit(weight, packed, quant_state=state)
        reason = "" if torch.allclose(product, weight, atol=0.1) else "it gives wrong numbers"
    except Exception as error:  # no kernel, no library, a card too old: each has its own error
        reason = first_line(error)
    if reason:
        raise UserError(
            f"model.quantization=nf4 does not work with this bitsandbytes on {device()} ({reason}); "
            "install a build for this device, or set model.quantization=none"
        )


def _check_optimizer(setting: str, optimizer: str, instead: str) -> None:
    """Makes the optimizer and takes a step on the device, which shows a missing package or kernel."""
    if any(mark in optimizer for mark in ("8bit", "paged", "bnb")):
        _import_bitsandbytes(setting, instead)
    weight = nn.Parameter(torch.ones(512, 512, device=device()))  # bitsandbytes pages what has 100,000 numbers or more
    try:
        arguments = TrainingArguments("unused", optim=optimizer, report_to="none", use_cpu=weight.device.type == "cpu")
        kind, keywords = Trainer.get_optimizer_cls_and_kwargs(arguments, nn.ParameterList([weight]))
        made = kind([weight], **keywords)
        weight.square().sum().backward()
        made.step()
        reason = "it takes no step" if bool((weight == 1).all()) else ""
    except Exception as error:  # each library has its own for what it lacks
        reason = shortened(first_line(error), 100)
    if reason:
        raise UserError(f"{setting} cannot be used here ({reason}); set {instead}, or install what it needs")


def _check_attention(name: str, settings: ModelSettings) -> None:
    if settings.attention == "sdpa":
        kind = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(model_config(name)), None)
        if kind is not None and not kind._supports_sdpa:
            raise UserError(f"model.attention=sdpa is not there for '{name}' in Transformers; set model.attention=auto")


def _check_template(job: Job, name: str) -> None:
    """Refuses an adapter whose prompts were made by another chat template than today's: it knows no others."""
    stage = job.run.stage("sft")
    path = stage / "adapter" / "chat_template.jinja"
    if path.is_file() and path.read_bytes().decode("utf-8", "replace") != open_tokenizer(name).chat_template:
        raise UserError(
            f"{stage} was trained on prompts of another chat template than '{name}' has here now; "
            f"make it again: `{make('sft', job.run)} {switch('force')}`"
        )


def _check_memory(profile: Profile) -> None:
    """Refuses what only a GPU's memory needs, where it was asked for; the profiles of GPUs have it and may run on a CPU."""
    reasons = {
        "card": "which has none, and `plan` alone reads it",
        "halve_on_oom": "where the system ends what runs out of memory",
    }
    for key, reason in reasons.items():
        value = getattr(profile.memory, key)
        if value and by_hand(profile, f"memory.{key}") and not torch.cuda.is_available():
            raise UserError(f"memory.{key}={str(value).lower()} would have no effect on a CPU, {reason}; leave it out")


def _check_repeatable(profile: Profile) -> None:
    """Refuses to switch off on a CPU what it always does."""
    if by_hand(profile, "run.deterministic") and not torch.cuda.is_available():
        raise UserError(
            f"run.deterministic={str(profile.run.deterministic).lower()} would have no effect on a CPU, which adds in a "
            "fixed order in any case; leave it out"
        )


def _check_vocabulary(job: Job, name: str) -> None:
    trained_on = (job.run.done("reward") or {}).get("vocabulary")
    if trained_on is not None and trained_on != vocabulary(open_tokenizer(name)):
        raise UserError(
            f"the reward model in {job.run.stage('reward')} reads other tokens than the tokenizer of '{name}' gives; "
            f"make it again (`{make('reward', job.run)} {switch('force')}`, with your options) "
            "or give the model it was trained on"
        )
