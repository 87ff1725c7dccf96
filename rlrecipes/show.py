"""What a job would train on and how it would be judged, as text, before any time is spent."""

from __future__ import annotations

from rlrecipes.job import Job
from rlrecipes.recipe import Example, Prompt
from rlrecipes.rewards import score_term

SHOWN = 3


def show(job: Job) -> str:
    """The data with a few rows of each kind, what each reward term and metric gives the reference and silence."""
    data, recipe = job.data, job.recipe
    parts = [f"{recipe.name}: {recipe.summary}", f"data: {data.source}", *(f"  note: {note}" for note in data.notes)]
    parts += [f"  {count} rows left out: {reason}" for reason, count in data.dropped.items()]
    parts += _heading("demonstrations", len(data.demonstrations), "what SFT imitates")
    parts += [_row(example.prompt, f"→ {example.answers[0]}") for example in data.demonstrations[:SHOWN]]
    parts += _heading("comparisons", len(data.comparisons), "what the reward model learns from")
    for comparison in data.comparisons[:SHOWN]:
        parts.append(_row(comparison.prompt, f"+ {comparison.chosen}", f"- {comparison.rejected}"))
    if data.ratings:
        parts += _heading("ratings", len(data.ratings), "answers with their scores")
        parts += [_row(rating.prompt, f"{rating.score:g}: {rating.answer}") for rating in data.ratings[:SHOWN]]
    parts += _heading("prompts", len(data.prompts), "what PPO answers")
    parts += [_row(example.prompt) for example in data.prompts[:SHOWN]]
    parts += _heading("held out", len(data.held_out), f"and {len(data.held_out_comparisons)} comparisons")
    parts += [
        _row(example.prompt, *(f"= {answer}" for answer in example.answers[:2])) for example in data.held_out[:SHOWN]
    ]
    return "\n".join([*parts, *_reward(job), *_metrics(job)])


def _heading(name: str, count: int, meaning: str) -> list[str]:
    return [f"\n{name} ({count}): {meaning}"]


def _row(prompt: Prompt, *lines: str) -> str:
    turns = [f"  {message.role}: {message.content}" for message in prompt]
    return "\n".join([*turns, *(f"    {line}" for line in lines)])


def _judged(job: Job) -> tuple[list[Example], list[str]]:
    examples = [example for example in job.data.held_out[:50] if example.answers]
    return examples, [example.answers[0] for example in examples]


def _reward(job: Job) -> list[str]:
    examples, references = _judged(job)
    lines = ["\nreward: weight × what it gives the references and silence, on average"]
    if job.recipe.reward.learned:
        how = f"taken from {taken}" if (taken := job.profile.reward.model) else f"{job.objective}"
        lines.append(f"  {job.recipe.reward.learned:g} × learned: the reward model's standardised score ({how})")
    for term in job.recipe.reward.terms:
        reference, silence = (
            _mean(score_term(term, answers, examples)) for answers in (references, [""] * len(examples))
        )
        lines.append(f"  {term.weight:g} × {term.name}: {reference:.2f} and {silence:.2f}")
    return lines


def _metrics(job: Job) -> list[str]:
    examples, references = _judged(job)
    lines = ["\nmetrics: what they give the references and silence; the first is the headline"]
    for metric in job.metrics:
        values = []
        for answers in (references, [""] * len(examples)):
            rows = metric.statistics(answers, examples)
            values.append(metric.finish([sum(column) for column in zip(*rows, strict=True)]) if rows else float("nan"))
        lines.append(f"  {metric.name}: {values[0]:.2f} and {values[1]:.2f}")
    return lines


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else float("nan")
