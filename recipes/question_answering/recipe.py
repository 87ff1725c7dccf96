"""Extractive question answering: a passage, a question, and an answer in the passage's own words.

Ben took the red cup to the kitchen on Monday. The weather was fine.
Question: Who took the cup, and where to?
-> Ben, the kitchen
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

import regex

from recipes.question_answering import builtin, hub
from rlrecipes import metrics
from rlrecipes.recipe import Columns, Comparison, Evaluation, Example, Prompt, Recipe, Reward, Term, truth_of, user
from rlrecipes.text import characters, is_spaced, normalize_answer, words, written

AROUND = regex.compile(r"^[[\p{P}\s]--[-%@#&*]]+|[[\p{P}\s]--[-%@#&*]]+$", regex.V1)
"""What stands around a span and is no part of an answer, in every script."""


def ask(context: str, question: str) -> Prompt:
    """The passage, then the question, which so stands next to the answer."""
    return user(f"{context}\nQuestion: {question}")


def read(row: Mapping[str, Any]) -> Example:
    """A row of SQuAD's columns; `answers` may also be SQuAD's `{"text": […]}` or one string."""
    for name in ("context", "question"):
        if not isinstance(row[name], str) or not row[name].strip():
            raise ValueError(f"'{name}' must be a text")
    answers = _parsed(row["answers"]) if isinstance(row["answers"], str) else row["answers"]
    if isinstance(answers, Mapping) and "text" not in answers:
        raise ValueError("'answers' is an object without 'text'")
    answers = answers.get("text") if isinstance(answers, Mapping) else answers
    answers = [answers] if isinstance(answers, str) else [] if answers is None else answers
    if row.get("is_impossible") is not None and truth_of(row["is_impossible"]) is not False:
        raise ValueError("'is_impossible' is not false")
    if not isinstance(answers, list | tuple) or not all(isinstance(answer, str) for answer in answers):
        raise ValueError("""'answers' must be a list of texts, a text, or SQuAD's {"text": [...]}""")
    given = tuple(dict.fromkeys(answer.strip() for answer in answers if answer.strip()))
    if not given:
        raise ValueError("'answers' is empty: questions without an answer are not used")
    return Example(ask(row["context"].strip(), row["question"].strip()), given)


def _parsed(cell: str) -> Any:
    """A cell that holds an object or a list of texts or objects, as Python or JSON writes them; any other text as it is.

    Raises:
        ValueError: it starts like one and is none.
    """
    if not re.match(r"\{\s*['\"]\w+['\"]\s*:|\[\s*['\"{].*['\"}]\s*\]$", cell.strip(), re.DOTALL):
        return cell
    if re.search(r"""["']\s+["']""", cell):  # an array's: NumPy puts no comma between texts, and Python would join them
        raise ValueError("'answers' holds a list without commas")
    try:
        return written(cell)
    except ValueError:
        raise ValueError("'answers' holds an object that cannot be read") from None


def passage(prompt: Prompt) -> str:
    """What stands before the question; the whole last turn where the data bring a layout of their own."""
    return prompt[-1].content.rpartition("\nQuestion: ")[0] or prompt[-1].content


def parts(text: str) -> list[str]:
    """Words, with what hyphens and apostrophes join taken apart: an answer may be a part of a passage's word."""
    return [part for word in words(text) for part in re.split("['’-]", word)]


def extractive(prompt: Prompt, answer: str, example: Example) -> float:
    """Share of the answer's words that stand in the passage; 0 for an answer without words."""
    told, given = set(parts(passage(prompt))), parts(answer)
    return sum(word in told for word in given) / len(given) if given else 0.0


def compare(example: Example, others: Sequence[Example], rng: Random) -> Comparison | None:
    """The reference against a span as long elsewhere: no word of any reference, no small word at either end."""
    text = passage(example.prompt)
    split, between = (str.split, " ") if is_spaced(text) else (characters, "")
    tokens = split(text)
    known = {part for answer in example.answers for part in parts(answer)}
    size = len(split(example.answers[0])) if example.answers else 0
    for start in rng.sample(range(len(tokens)), len(tokens) if size else 0):
        span = tokens[start : start + size]
        if len(span) == size and all(len(word) > 3 or not word.islower() for word in (span[0], span[-1])):
            rejected = AROUND.sub("", between.join(span))
            if normalize_answer(rejected) and known.isdisjoint(parts(rejected)):
                return Comparison(example.prompt, example.answers[0], rejected)
    return None


RECIPE = Recipe(
    name="question_answering",
    summary="answer a question in the words of a passage",
    columns=Columns(required=("context", "question", "answers"), example=read, optional=("is_impossible",)),
    reward=Reward(terms=(Term("extractive", extractive, weight=0.3),)),
    evaluation=Evaluation((metrics.mean_of("f1", metrics.f1), metrics.mean_of("exact_match", metrics.exact_match))),
    builtin=lambda: builtin.generate(ask),
    documents=lambda: builtin.documents(ask),
    compare=compare,
    compared="the rejected answer is another span of the same passage, about as long as the reference",
    hub=hub.sets(ask, read),
)
