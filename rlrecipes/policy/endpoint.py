"""A language model behind an OpenAI-compatible address as the judge of one pair of policies: which answer is better?

Each prompt is asked twice, with either answer first, since such judges favour a place (Zheng et al. 2023, arXiv 2306.05685,
section 3.3). Two answers that are the same are a tie and not asked. What was answered once is kept in `runs/.judge/`, so the
same question is never asked twice.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rlrecipes.errors import first_line
from rlrecipes.metrics import mean_interval
from rlrecipes.profile import EvaluateSettings
from rlrecipes.recipe import Example
from rlrecipes.run.console import say
from rlrecipes.run.interrupts import stop_requested
from rlrecipes.text import shortened

AT_ONCE = 8
"""Questions on their way at the same time."""
SECONDS = 120
"""Most seconds of one answer."""
FAILURES = 3
"""Failed questions after which the endpoint counts as dead."""

QUESTION = """Two assistants have given the next answer in the conversation below. Which answer is better? Judge how right, \
helpful and well written they are; neither their order nor their length counts.

[conversation]
{conversation}

[answer A]
{first}

[answer B]
{second}

Reply with one letter and nothing else: A, B, or C if they are equally good."""

VERDICTS = {"A": 1.0, "B": 0.0, "C": 0.5}
"""What a reply is worth for the answer that stands first; any other reply counts as C."""


def ask(
    settings: EvaluateSettings, examples: Sequence[Example], ours: Sequence[str], theirs: Sequence[str], cache: Path
) -> tuple[dict[str, Any], dict[str, float] | None]:
    """What `done.json` holds of the judge, and the share of prompts on which it prefers `ours`; None where it is dead.

    Half a win each for the two orders; `first` is how often the answer that stands first wins, 0.5 without a bias.
    """
    pairs = list(zip(ours, theirs, strict=True))
    different = [i for i, (a, b) in enumerate(pairs) if a != b]
    questions = [question(examples[i], *order) for i in different for order in (pairs[i], pairs[i][::-1])]
    known = _Known(cache / f"{_digest([settings.judge_url, settings.judge_model])}.jsonl")
    new = sorted({text for text in questions if _digest(text) not in known.replies})
    say(
        f"  {len(new)} questions to {settings.judge_model} at {settings.judge_url}, {len(questions) - len(new)} known already"
    )
    record = {"name": settings.judge_model, "url": settings.judge_url, "asked": len(new), "prompts": len(pairs)}
    if wrong := _ask_all(settings, new, known):
        return record | {"missing": f"{settings.judge_url} did not answer ({wrong})"}, None
    firsts = [VERDICTS.get(letter(known.replies[_digest(text)]), 0.5) for text in questions]
    unclear = sum(letter(known.replies[_digest(text)]) not in VERDICTS for text in questions)
    wins = [0.5] * len(pairs)
    for k, i in enumerate(different):
        wins[i] = (firsts[2 * k] + 1 - firsts[2 * k + 1]) / 2
    first = mean_interval(firsts).as_json() if firsts else None
    return record | {"first": first, "unclear": unclear}, mean_interval(wins).as_json()


def question(example: Example, first: str, second: str) -> str:
    """What the judge reads."""
    conversation = "\n".join(f"{message.role}: {message.content}" for message in example.prompt)
    return QUESTION.format(conversation=conversation, first=first, second=second)


def letter(reply: str) -> str:
    """The first letter of a reply, without marks such as `**A**` or `[[A]]`."""
    return reply.strip(" \n\t*[](){}\"'`.:").upper()[:1]


class _Known:
    """Replies by question, and the file that keeps them: a line each, so that an interruption loses one at most."""

    def __init__(self, path: Path) -> None:
        self.path, self.lock = path, threading.Lock()
        self.replies: dict[str, str] = {}
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
            try:
                row = json.loads(line)
                self.replies[str(row["question"])] = str(row["reply"])
            except (ValueError, TypeError, KeyError):  # cut off
                continue

    def add(self, text: str, reply: str) -> None:
        with self.lock:
            self.replies[_digest(text)] = reply
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write("\n" + json.dumps({"question": _digest(text), "reply": reply}))


def _ask_all(settings: EvaluateSettings, questions: Sequence[str], known: _Known) -> str | None:
    """Asks and keeps the replies; returns what went wrong once it has gone wrong too often."""
    failed: list[str] = []

    def put(text: str) -> None:
        if len(failed) < FAILURES and not stop_requested():
            try:
                known.add(text, reply(settings, text))
            except Exception as error:  # the network, the server, or a reply of another form
                failed.append(f"{type(error).__name__}: {shortened(first_line(error), 100)}")

    for _ in range(2):  # once more what failed: a busy server refuses now and then
        failed.clear()
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(put, [text for text in questions if _digest(text) not in known.replies]))
        if not failed or len(failed) >= FAILURES:
            break
    return failed[0] if failed else None


def reply(settings: EvaluateSettings, text: str) -> str:
    """The model's reply to one question, at temperature 0. `OPENAI_API_KEY` of the environment is sent where it is set."""
    body = {
        "model": settings.judge_model,
        "messages": [{"role": "user", "content": text}],
        "temperature": 0,
        "max_tokens": 8,
    }
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get("OPENAI_API_KEY"):
        headers["Authorization"] = f"Bearer {key}"
    url = f"{settings.judge_url.rstrip('/')}/chat/completions"
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=SECONDS) as response:
        answer: Mapping[str, Any] = json.load(response)
    return str(answer["choices"][0]["message"]["content"])


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:32]
