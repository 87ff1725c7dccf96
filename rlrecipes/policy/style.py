"""How answers look, whatever they say: measures that show at a glance what a policy has changed beside its score.

style(Answer("I read. I read. I read.", True), user("Read?")) -> {"words": 6, "repetition": 0.5, "ended": 1, …}
"""

from __future__ import annotations

from rlrecipes.metrics import length, repetition
from rlrecipes.policy.answers import Answer
from rlrecipes.recipe import Example, Prompt
from rlrecipes.text import ngrams, words

RUN = 4
"""Words in a row that stand in the prompt before they count as copied; shorter runs come by chance."""

OPENING = 12
"""Words of an answer in which a refusal is looked for."""

REFUSALS = (
    *("i cannot help", "i can't help", "i cannot assist", "i can't assist", "i cannot provide", "i can't provide"),
    *("i'm sorry but", "i am sorry but", "i'm not able to", "i am not able to", "i'm unable to", "i am unable to"),
    *(
        "sorry i can't",
        "sorry i cannot",
        "i'm afraid i can't",
        "i'm afraid i cannot",
        "i can't comply",
        "i cannot comply",
    ),
    *("i can't fulfill", "i cannot fulfill", "i can't do that", "i cannot do that"),
    *("i won't be able", "as an ai", "as a language model", "i must decline"),
    *("tut mir leid aber", "dabei kann ich nicht helfen", "kann ich dir nicht helfen", "kann ich ihnen nicht helfen"),
    *("als ki", "als sprachmodell", "je suis désolé mais", "je suis désolée mais", "je ne peux pas vous aider"),
    *("je ne peux pas t'aider", "en tant qu'ia", "lo siento pero", "no puedo ayudar", "como ia"),
)
"""English, German, French and Spanish. It is crude: it misses what says no otherwise, and takes a translated "I'm sorry, but"
for a refusal."""


def style(answer: Answer, example: Example) -> dict[str, float]:
    """All measures of one answer, by name."""
    return {
        "words": length(answer.text, example),
        "repetition": repetition(answer.text, example),
        "ended": float(answer.ended),
        "copied": copied(answer.text, example.prompt),
        "refusals": refuses(answer.text),
    }


def copied(answer: str, prompt: Prompt) -> float:
    """Share of the answer's words within a run of at least `RUN` that stands in a turn of the prompt, from 0 to 1."""
    said = words(answer)
    asked = {gram for message in prompt for gram in ngrams(words(message.content), RUN)}
    places = {i + k for i, gram in enumerate(ngrams(said, RUN)) if gram in asked for k in range(RUN)}
    return len(places) / len(said) if said else 0.0


def refuses(answer: str) -> float:
    """1 if one of `REFUSALS` stands in the answer's first `OPENING` words, else 0."""
    opening = " ".join(words(answer)[:OPENING]).replace("’", "'")
    return float(any(f" {phrase} " in f" {opening} " for phrase in REFUSALS))
