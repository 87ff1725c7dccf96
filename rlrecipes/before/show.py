"""What a job would train on and how it would be judged, as text, before any time is spent.

    <|user|>Translate: Das Kind liest.<|end|><|assistant|>▌The child reads.<|end|>

The sign ▌ stands between the prompt and the answer, which is what training learns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlrecipes.before.config import language_part, whole_number
from rlrecipes.errors import UserError, option
from rlrecipes.hub.reach import cached_file, fetched_file, is_local, reach_model, read_object
from rlrecipes.job import Job
from rlrecipes.metrics import estimate
from rlrecipes.model.embedded import find_base
from rlrecipes.model.forged import forged, forged_note
from rlrecipes.model.template import prompt_text
from rlrecipes.model.tokens import (
    answer_length,
    encode,
    encode_prompt,
    open_with_note,
    spelled,
    spelled_note,
)
from rlrecipes.model.unwritten import unwritten, unwritten_note
from rlrecipes.profile import SFT, PolicySettings, algorithms, sampling_algorithms
from rlrecipes.recipe import Comparison, Example, Prompt, user
from rlrecipes.reward.terms import score_term
from rlrecipes.run.folder import make

SHOWN = 3
"""Rows of each kind that are shown."""
SAMPLED = 500
"""Rows whose tokens are counted for a distribution, at even distances."""
TOKENIZERS = ("tokenizer_config.json", "tokenizer.json")
"""With either of them in the cache, a model's tokenizer is there."""
FEWEST = 30
"""Held-out prompts below which a bootstrap interval says little."""
MOSTLY = 0.8
"""The share of comparisons that the longer answer may win before a person is told."""
BOUNDARY = "▌"
LONGEST = 1200
"""Characters of a text that are shown."""
UNCOUNTED = (
    "  texts that spell special tokens such as '<|im_end|>' are not counted either: only a tokenizer knows these"
)


def show(job: Job) -> str:
    """The data with a few rows of each kind, their tokens, what reward terms and metrics give the reference and silence."""
    data, train, held_out, recipe = job.data, job.data.train, job.data.held_out, job.recipe
    model, reason = open_reader(job)
    parts = [f"{recipe.name}: {recipe.summary}", f"data: {data.source}", *(f"  note: {note}" for note in data.notes)]
    parts += [f"  {count:,} rows left out: {reason}" for reason, count in data.dropped.items()]
    told = (
        "what SFT imitates"
        if job.profile.run.start == SFT
        else f"not imitated, since run.start={job.profile.run.start}"
    )
    parts += _heading("demonstrations", len(train.demonstrations), told)
    parts += [_row(example.prompt, f"→ {example.answers[0]}") for example in train.demonstrations[:SHOWN]]
    parts += _heading("comparisons", len(train.comparisons), "what the reward model and DPO learn from")
    for comparison in train.comparisons[:SHOWN]:
        parts.append(_row(comparison.prompt, f"+ {comparison.chosen}", f"- {comparison.rejected}"))
    parts += _longer(held_out.comparisons)
    if train.ratings:
        parts += _heading("ratings", len(train.ratings), "answers with their scores")
        parts += [_row(rating.prompt, f"{rating.score:g}: {rating.answer}") for rating in train.ratings[:SHOWN]]
    parts += _heading("prompts", len(train.prompts), "what PPO answers")
    parts += [_row(example.prompt) for example in train.prompts[:SHOWN]]
    parts += _heading("held out", len(held_out.prompts), f"and {len(held_out.comparisons)} comparisons")
    parts += [
        _row(example.prompt, *(f"= {answer}" for answer in example.answers[:2])) for example in held_out.prompts[:SHOWN]
    ]
    parts += _too_few(job)
    parts += (
        [*_tokenized(job, model), *_lengths(job, model)] if model else [f"\ntokens: not shown; {reason}", UNCOUNTED]
    )
    return "\n".join([*parts, *_reward(job), *_metrics(job)])


def _heading(name: str, count: int, meaning: str) -> list[str]:
    return [f"\n{name} ({count:,}): {meaning}"]


def _longer(comparisons: Sequence[Comparison]) -> list[str]:
    """What a judge that reads no word would reach, where that leaves a reward model little room (`reward.strength`)."""
    wins = [len(pair.chosen) > len(pair.rejected) for pair in comparisons]
    if sum(wins) <= MOSTLY * len(wins):
        return []
    return [
        f"  held out, the chosen answer is the longer one in {sum(wins):,} of {len(wins):,}; a policy is trained only "
        "where the reward model is shown to beat that: bring comparisons that the shorter answer wins"
    ]


def _too_few(job: Job) -> list[str]:
    """What each stage needs more rows of than there are."""
    train, profile, held_out = job.data.train, job.profile, len(job.data.held_out.prompts)
    size = "per_device_train_batch_size"
    needs = [("demonstrations", len(train.demonstrations), profile.sft.per_device_train_batch_size, f"sft.{size}")]
    needs = needs if profile.run.start == SFT else []
    if job.recipe.reward.learned and profile.reward.model is None:
        what, rows = ("comparisons", train.comparisons) if job.objective == "pairwise" else ("ratings", train.ratings)
        needs.append((what, len(rows), profile.reward.per_device_train_batch_size, f"reward.{size}"))
    if not job.parts and "dpo" in algorithms(profile):
        batch = profile.dpo.per_device_train_batch_size
        needs.append(("comparisons", len(train.comparisons), batch, f"dpo.{size}"))
    if not job.parts and "distill" in algorithms(profile):
        settings, prompts = profile.distill, len(train.prompts)
        asked = min(settings.limit or prompts, prompts)
        needs.append(("prompts", asked, settings.per_device_train_batch_size, f"distill.{size}"))
    for table in () if job.parts else sampling_algorithms(profile):
        of_table: PolicySettings = getattr(profile, table)
        needs.append(("prompts", len(train.prompts), of_table.batch // of_table.answers_each, f"{table}.{size}"))
    lines = [
        f"  {count:,} {what} cannot fill one batch of {batch}: bring more, or lower {setting}"
        for what, count, batch, setting in needs
        if count < batch
    ]
    if held_out < FEWEST:
        lines.append(f"  {held_out} held-out prompts give no interval to rely on: bring {FEWEST} or more")
    return ["\ntoo few rows", *lines] if lines else []


def _row(prompt: Prompt, *lines: str) -> str:
    turns = [f"  {message.role}: {_cut(message.content)}" for message in prompt]
    return "\n".join([*turns, *(f"    {_cut(line)}" for line in lines)])


def _cut(text: str) -> str:
    """A text of about `LONGEST` characters at most: its start and end, and the number of characters between them."""
    if len(text) <= LONGEST:
        return text
    half = LONGEST // 2
    return f"{text[:half]} […{len(text) - 2 * half:,} characters…] {text[-half:]}"


# As the model sees it.


@dataclass(frozen=True)
class Reader:
    """A base model's tokenizer and window, without its weights in memory."""

    name: str
    tokenizer: Any
    eos_note: str | None
    """How its EOS token was changed; None where it was not, or where the weights that tell are not here."""
    has_weights: bool
    """Whether its weights are on this machine."""
    max_tokens: int | None
    """The model's own window in tokens, as its `config.json` says."""


def open_reader(job: Job) -> tuple[Reader | None, str]:
    """The base model without its weights, or None and the reason.

    Raises:
        UserError: `model.name` is a folder without a model, or the model's configuration is damaged.
    """
    name = job.profile.model.name
    if name == "builtin":
        if (folder := find_base(job.run.root, job.profile.base, job.recipe.name)) is None:
            stage = make("sft", job.run)
            return (
                None,
                f"the embedded base model is not there yet; `{stage}` makes it, or name a model with {option('model')}",
            )
        name = str(folder)
    elif is_local(name):
        reach_model(name)
    try:
        place = _place(name)
    except UserError as error:
        return None, str(error)
    max_tokens = _window(place)
    try:
        tokenizer, note = open_with_note(place, cached_file)  # weights are never fetched for this
    except UserError as error:
        return None, str(error)
    weights = any(cached_file(place, file) for file in ("model.safetensors", "model.safetensors.index.json"))
    return Reader(name, tokenizer, note, weights, max_tokens), ""


def _place(name: str) -> str:
    """Where a model's small files are: its folder, the hub, or, without a network, the hub's cache.

    Raises:
        UserError: they are in none of these.
    """
    if is_local(name):
        return name
    try:
        reach_model(name)
    except UserError:
        cached = next((path for file in TOKENIZERS if (path := cached_file(name, file))), None)
        if cached is None:
            raise
        return str(cached.parent)
    return name


def _window(name: str) -> int | None:
    """The model's own window in tokens."""
    path = fetched_file(name, "config.json")
    config = language_part(read_object(path), name) if path else {}
    return whole_number(config, "max_position_embeddings", name)


def _tokenized(job: Job, model: Reader) -> list[str]:
    """Rows through the chat template, special tokens and all."""
    tokenizer = model.tokenizer
    lines = [f"\nas the model sees it, decoded from its tokens; {BOUNDARY} is where the prompt ends"]
    lines.append(f"  tokenizer of {model.name}; EOS {tokenizer.eos_token!r}, padding {tokenizer.pad_token!r}")
    if model.eos_note:
        lines.append(f"  note: {model.eos_note}")
    elif not model.has_weights:
        lines.append("  note: whether the model was taught this EOS is seen once its weights are here")
    if plain := spelled(tokenizer, job.data):
        lines.append(f"  note: {spelled_note(plain)}")
    if turns := forged(tokenizer, job.data):
        lines.append(f"  note: {forged_note(tokenizer, turns)}")
    if (lost := unwritten(tokenizer, job.data)).rows:
        lines.append(f"  note: {unwritten_note(lost)}")

    def line(mark: str, prompt: Prompt, answer: str) -> str:
        ids = encode(tokenizer, prompt, answer)
        text = f"{_cut(tokenizer.decode(ids.prompt))}{BOUNDARY}{_cut(tokenizer.decode(ids.answer))}"
        return f"{mark} " + text.replace("\n", "\n    ")

    train = job.data.train
    lines += ["  " + line("→", row.prompt, row.answers[0]) for row in train.demonstrations[:SHOWN]]
    for pair in train.comparisons[:1]:
        lines += ["  " + line("+", pair.prompt, pair.chosen), "  " + line("-", pair.prompt, pair.rejected)]
    return lines


def _lengths(job: Job, model: Reader) -> list[str]:
    """Distributions of tokens, and how many rows each stage leaves out as too long."""
    train, profile, tokenizer = job.data.train, job.profile, model.tokenizer
    window = min(profile.model.max_length, model.max_tokens or profile.model.max_length)
    length = answer_length(tokenizer, train.demonstrations, profile.ppo.response_length)
    why = "ppo.response_length" if profile.ppo.response_length else "as 99 % of the demonstrations"
    own = "" if model.max_tokens is None else f", the model's own {model.max_tokens:,}"
    demonstrations = [(row.prompt, row.answers[0]) for row in train.demonstrations]
    comparisons = [(pair.prompt, max(pair.chosen, pair.rejected, key=_bytes)) for pair in train.comparisons]
    prompts, held_out = ([(row.prompt, "") for row in rows] for rows in (train.prompts, job.data.held_out.prompts))
    lines = [
        f"\ntokens: shortest / median / 90 % / 99 % / longest, of at most {SAMPLED:,} rows of each kind",
        *_spread(tokenizer, "demonstrations", demonstrations, "answer"),
        *_spread(tokenizer, "comparisons", comparisons, "longer answer"),
        *_spread(tokenizer, " ".join(map(str.upper, sampling_algorithms(profile))) or "prompts", prompts),
        *_spread(tokenizer, "held out", held_out),
        f"  the window has {window:,} for prompt and answer (model.max_length {profile.model.max_length:,}{own})",
        f"  answers in training and evaluation have at most {length:,} ({why})",
        "\nleft out as too long, of all rows",
    ]
    both = [(pair.prompt, side) for pair in train.comparisons for side in (pair.chosen, pair.rejected)]
    sides = _too_long(tokenizer, both, window)
    pairs = [a or b for a, b in zip(sides[::2], sides[1::2], strict=True)]
    for what, long, room in (
        ("demonstrations", _too_long(tokenizer, demonstrations, window), window),
        ("comparisons", pairs, window),
        ("prompts", _too_long(tokenizer, prompts, window - length), window - length),
        ("held-out prompts", _too_long(tokenizer, held_out, window - length), window - length),
    ):
        lines.append(f"  {sum(long):,} of {len(long):,} {what}: more than {max(room, 0):,} tokens")
    if window <= length:
        longer = (
            "choose a model with a longer window" if window < profile.model.max_length else "raise model.max_length"
        )
        lines.append(f"  answers this long leave no room for a prompt; lower ppo.response_length or {longer}")
    return lines


Pairs = Sequence[tuple[Prompt, str]]
"""Prompts and answers; an empty answer stands for the prompt alone."""


def _spread(tokenizer: Any, name: str, pairs: Pairs, answer: str | None = None) -> list[str]:
    sample = pairs[:: -(-len(pairs) // SAMPLED) or 1]
    encoded = [encode(tokenizer, prompt, text) for prompt, text in sample]
    lines = [_percentiles(f"{name}, prompt", [len(ids.prompt) for ids in encoded])]
    return [*lines, _percentiles(f"{name}, {answer}", [len(ids.answer) for ids in encoded])] if answer else lines


def _percentiles(name: str, counts: Sequence[int]) -> str:
    ascending = sorted(counts)
    places = (
        [min(len(ascending) - 1, int(share * len(ascending))) for share in (0, 0.5, 0.9, 0.99, 1)] if ascending else []
    )
    return f"  {name:<28}" + (" / ".join(f"{ascending[place]:,}" for place in places) or "none")


def _too_long(tokenizer: Any, pairs: Pairs, room: int) -> list[bool]:
    """Whether each has more than `room` tokens. A token has a byte or more, so few rows must be tokenized."""
    frame = _bytes(prompt_text(tokenizer, user("x"))) + 3  # of every turn; BOS, EOS and the space before an answer
    long = []
    for prompt, answer in pairs:
        most = _bytes(answer) + sum(_bytes(message.content) + frame for message in prompt)
        long.append(most > room and _tokens(tokenizer, prompt, answer) > room)
    return long


def _tokens(tokenizer: Any, prompt: Prompt, answer: str) -> int:
    return len(encode(tokenizer, prompt, answer).ids if answer else encode_prompt(tokenizer, prompt))


def _bytes(text: str) -> int:
    return len(text.encode())


# What reward and metrics give.


def _given(job: Job) -> tuple[list[Example], list[list[str]], str]:
    """Up to 50 held-out examples, answers to all of them, one list after another, and what these lists are called: their
    first references and silence, or silence alone where they bring none."""
    first = job.data.held_out.prompts[:50]
    if not (examples := [example for example in first if example.answers]):
        return list(first), [[""] * len(first)], "silence"
    return examples, [[example.answers[0] for example in examples], [""] * len(examples)], "the references and silence"


def _reward(job: Job) -> list[str]:
    examples, given, what = _given(job)
    lines = [f"\nreward: weight × what it gives {what}, on average"]
    if job.recipe.reward.learned:
        settings = job.profile.reward
        several = f", the {settings.combine} of {settings.seeds} models" if settings.seeds > 1 else ""
        how = f"taken from {source}" if (source := settings.model) else f"{job.objective}{several}"
        lines.append(f"  {job.recipe.reward.learned:g} × learned: the reward model's standardised score ({how})")
    for term in job.recipe.reward.terms:
        seconds = job.profile.limits.term_seconds
        values = [_mean(score_term(term, answers, examples, seconds)) for answers in given]
        lines.append(f"  {term.weight:g} × {term.name}: {' and '.join(f'{value:.2f}' for value in values)}")
    return lines


def _metrics(job: Job) -> list[str]:
    examples, given, what = _given(job)
    lines = [f"\nmetrics: what they give {what}; the first is the headline"]
    for metric in job.metrics:
        values = [estimate(metric, answers, examples).value for answers in given]
        lines.append(f"  {metric.name}: {' and '.join(f'{value:.2f}' for value in values)}")
    return lines


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else float("nan")
