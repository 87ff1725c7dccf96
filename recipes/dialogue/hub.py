"""Dialogue on public data: chats with a preferred reply, and graded replies.

trl-lib/ultrafeedback_binarized: {"chosen": [{"role": "user", "content": "Name a prime."},
  {"role": "assistant", "content": "7 is prime."}], "rejected": [the same turn, "8."], "score_chosen": 8.5, …}
-> user: Name a prime. | + 7 is prime. | - 8.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rlrecipes.recipe import Comparison, HubSet, Message, Prompt, Rating

TURN = re.compile(r"\s*<extra_id_1>(User|Assistant)\n")
"""What stands between the turns of a longer chat in HelpSteer2's prompts."""


def chat(messages: Sequence[Mapping[str, str]]) -> Prompt:
    return tuple(Message(message["role"], message["content"]) for message in messages)


def whole_chats(row: Mapping[str, Any]) -> Comparison:
    """{"chosen": [user turn, assistant turn], "rejected": [the same user turn, another], "score_chosen": 8.5, …}

    The margin is the difference of the scores, which go from 1 to 10. Where it is not above 0, one judge's two opinions
    contradict each other.
    """
    (*prompt, chosen), (*other, rejected) = chat(row["chosen"]), chat(row["rejected"])
    if prompt != other or {chosen.role, rejected.role} != {"assistant"}:
        raise ValueError("chosen and rejected differ in more than the last reply")
    margin = row["score_chosen"] - row["score_rejected"]
    if margin <= 0:
        raise ValueError("'score_chosen' is not above 'score_rejected'")
    return Comparison(tuple(prompt), chosen.content.strip(), rejected.content.strip(), margin=margin)


def last_replies(row: Mapping[str, Any]) -> Comparison:
    """{"prompt": [turns, the user's last], "chosen": [one assistant turn], "rejected": [one assistant turn]}"""
    (chosen,), (rejected,) = chat(row["chosen"]), chat(row["rejected"])
    return Comparison(chat(row["prompt"]), chosen.content.strip(), rejected.content.strip())


def graded(row: Mapping[str, Any]) -> Rating:
    """A reply and how helpful it was found, from 0 to 4.

    {"prompt": "List two fruits.", "response": "Apple and pear.", "helpfulness": 4, "correctness": 4, …}
    """
    first, *rest = TURN.split(row["prompt"])
    turns = [Message("user", first.strip())]
    turns += [Message(role.lower(), text.strip()) for role, text in zip(rest[::2], rest[1::2], strict=True)]
    if turns[-1].role == "assistant" and not turns[-1].content:
        turns.pop()
    return Rating(tuple(turns), row["response"].strip(), float(row["helpfulness"]))


SETS = (
    HubSet(
        "trl-lib/ultrafeedback_binarized",
        serves=("demonstrations", "prompts", "preferences"),
        columns=("chosen", "rejected", "score_chosen", "score_rejected"),
        read=whole_chats,
        licence="none stated; its source is MIT",
        test="test",
        take=20_000,
    ),
    HubSet(
        "nvidia/HelpSteer2",
        serves=("ratings",),
        columns=("prompt", "response", "helpfulness"),
        read=graded,
        licence="CC-BY-4.0",
        test="validation",
    ),
    HubSet(
        "trl-lib/hh-rlhf-helpful-base",
        serves=("demonstrations", "prompts", "preferences"),
        columns=("prompt", "chosen", "rejected"),
        read=last_replies,
        licence="none stated; its source is MIT",
        test="test",
        default=False,
    ),
)
