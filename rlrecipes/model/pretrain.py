"""The embedded base model: a small Llama and its tokenizer, trained once from scratch on the recipes' own documents.

The first four recipes share one. A later recipe with documents has one of its own, which reads these beside theirs: another
document would change the shared base, and with it every number measured on it and every adapter that stands on it.

It stands in for the pretrained model that a GPU user downloads: byte-level BPE (any language works), a pad token of its own,
a chat template, about a million parameters. It is cached under `runs/.base/` by the fingerprint of its settings and text.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Trainer, TrainingArguments, set_seed

from rlrecipes.errors import UserError, option
from rlrecipes.model.embedded import FOLDER, MACHINE, MADE_OF, check_base, documents, find_base, key, made_of, seal_base
from rlrecipes.model.forward import hidden_states, needed_states_only, next_token_logits
from rlrecipes.model.tokens import PAD, encode, pad_right
from rlrecipes.profile import BaseSettings
from rlrecipes.recipe import Example
from rlrecipes.run.checkpoint import Checkpoints
from rlrecipes.run.circumstances import machine, versions
from rlrecipes.run.folder import read_json, write_json
from rlrecipes.run.lock import locked
from rlrecipes.run.out_of_memory import release
from rlrecipes.run.resume import Resumable, check_weights
from rlrecipes.run.tracking import progress, remove_printer

END, USER, ASSISTANT, SYSTEM = "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
IGNORED = -100
"""The label that PyTorch's cross-entropy passes over."""


class ResumableTrainer(Resumable, Trainer):
    """Transformers' trainer, which goes on from our checkpoints."""

    def compute_loss(self, model: Any, inputs: dict[str, torch.Tensor], *args: Any, **kwargs: Any) -> torch.Tensor:
        """Mean cross-entropy, in nats, of the tokens with a label; `ids` and `labels` are `[B, L]`. Others get no logits."""
        targets = nn.functional.pad(inputs["labels"][:, 1:], (0, 1), value=IGNORED)
        learned = targets != IGNORED
        with needed_states_only(model, learned):
            states = hidden_states(model, inputs["ids"])[learned]
        return nn.functional.cross_entropy(next_token_logits(model, states), targets[learned])


def embedded_base(settings: BaseSettings, root: Path, seconds: float, recipe: str = "") -> Path:
    """The folder of a recipe's embedded base; trains it if it is not there yet, with a checkpoint every `seconds`.

    A second process that needs the same base waits for it. Where its documents cannot all be read, a base that `find_base`
    knows serves.

    Raises:
        UserError: it is damaged, or there is none and its documents cannot all be read.
    """
    try:
        texts = documents(recipe)
    except UserError as error:
        if (base := find_base(root, settings, recipe)) is None:
            raise UserError(
                f"the embedded base cannot be trained: {error}, or name a model with {option('model')}"
            ) from error
        return base
    folder = root / FOLDER / key(settings, texts)
    with locked(folder.parent, wait=True):
        draft = folder.with_name("." + folder.name)
        if not folder.exists():
            _open(draft)
            target = _train(settings, texts, draft, seconds)
            release()
            write_json(target / MACHINE, machine())
            write_json(target / MADE_OF, made_of(settings, recipe))
            seal_base(target)
            target.rename(folder)
        shutil.rmtree(draft, ignore_errors=True)
        check_base(folder)
    return folder


def _open(draft: Path) -> None:
    """Keeps the checkpoints of an interrupted process with the same libraries; otherwise empties the folder."""
    marker = draft / "begun.json"
    if read_json(marker) != versions():
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        write_json(marker, versions())


def _train(settings: BaseSettings, documents: Sequence[Example], folder: Path, seconds: float) -> Path:
    """Trains in `folder` and returns the model's own folder in it."""
    tokenizer = _tokenizer(settings, documents)
    batches = _batches(tokenizer, documents, settings)
    set_seed(settings.seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=settings.hidden_size,
            intermediate_size=settings.intermediate_size,
            num_hidden_layers=settings.num_hidden_layers,
            num_attention_heads=settings.num_attention_heads,
            max_position_embeddings=settings.max_position_embeddings,
            initializer_range=0.06,  # 0.02 is made for wide models; here it triples the steps
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
        )
    )
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=settings.max_steps,
        per_device_train_batch_size=1,  # of whole batches
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        adam_beta2=0.98,
        warmup_steps=min(50, settings.max_steps // 10),
        seed=settings.seed,
        remove_unused_columns=False,
        save_strategy="no",
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trainer = ResumableTrainer(
        model,
        arguments,
        train_dataset=batches,
        data_collator=lambda items: {
            "ids": pad_right([row["ids"] for row in items[0]["rows"]], tokenizer.pad_token_id),
            "labels": pad_right([row["labels"] for row in items[0]["rows"]], IGNORED),
        },
        callbacks=[progress("base")],
    )
    remove_printer(trainer)
    trainer.train_from(Checkpoints(folder, seconds), "base")
    target = folder / "model"
    shutil.rmtree(target, ignore_errors=True)  # of a process that was killed while it wrote here
    model.save_pretrained(target)
    check_weights("base", folder)
    tokenizer.save_pretrained(target)
    return target


def _tokenizer(settings: BaseSettings, documents: Sequence[Example]) -> Any:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocab_size,
        special_tokens=[PAD, END, USER, ASSISTANT, SYSTEM],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (text for d in documents for text in (*(message.content for message in d.prompt), *d.answers))
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[USER, ASSISTANT, SYSTEM],
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
    )


def _batches(tokenizer: Any, documents: Sequence[Example], settings: BaseSettings) -> list[dict[str, Any]]:
    """Batches of rows of like length, for little padding; the trainer draws them in random order.

    Transformers' own grouping by length draws neighbouring lengths one after the other, which here means one recipe after
    another: the model forgets each while it reads the next.
    """
    shuffled = random.Random(settings.seed).sample(documents, len(documents))
    rows = sorted((_row(tokenizer, document) for document in shuffled), key=lambda row: len(row["ids"]))
    size = settings.per_device_train_batch_size
    return [{"rows": rows[start : start + size]} for start in range(0, len(rows), size)]


def _row(tokenizer: Any, document: Example) -> dict[str, list[int]]:
    """Ids and labels of a document. The loss is on the answer alone: so small a model then learns far sooner to copy from
    its prompt."""
    encoded = encode(tokenizer, document.prompt, document.answers[0])
    return {"ids": encoded.ids, "labels": [IGNORED] * len(encoded.prompt) + encoded.answer}
