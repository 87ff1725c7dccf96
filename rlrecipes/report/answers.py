"""All held-out answers for the page, cut to what a page can hold, and the script that filters and orders them.

{"prompt": "user: Translate: …", "gain": 0.12, "given": [{"name": "ppo", "answer": "…", "headline": 0.93, "reward": 1.7}]}
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from markupsafe import Markup

from rlrecipes.report.records import Pair
from rlrecipes.report.samples import gain

ROOM = 1_500_000
"""Bytes of texts on one page; with their scores, and all else, a page stays below 3 MB."""
MOST = 600
"""Prompts on one page."""
CUTS = (2000, 1000, 500, 250, 100, 40)
"""Characters after which texts are cut; the first that leaves room is taken."""

Row = Mapping[str, Any]


def all_answers(rows: Sequence[Row], pair: Pair, share: int = 1) -> dict[str, Any] | None:
    """The template's values for the list of `rows`, on a page that holds `share` such lists; None without rows."""
    first = rows[: MOST // share]
    if not first:
        return None
    names = [*first[0]["policies"]]
    over = str(pair.policy.over)
    texts = [text for row in first for text in _texts(row)]
    sizes = {cut: sum(len(escape(text[:cut]).encode()) for text in texts) for cut in CUTS}
    cut = next((cut for cut in CUTS if sizes[cut] <= ROOM / share), CUTS[-1])
    return {
        "cases": [_case(row, pair.name, over, cut) for row in first],
        "of": len(rows),
        "names": names,
        "policy": pair.name if pair.name in names else names[-1],
        "judged": any("judge" in given for given in first[0]["policies"].values()),
        "cut": cut,
        "was_cut": max(map(len, texts)) > cut,
    }


def script() -> dict[str, Markup]:
    """The page's own script, and the hash by which its security policy lets this one run and no other."""
    text = (Path(__file__).parent / "answers.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return {"script": Markup(text), "script_hash": Markup(digest)}


def gains(rows: Sequence[Row], pair: Pair) -> list[float]:
    """The headline's paired differences, one a row that both policies answered; those that are no numbers are left out."""
    over = str(pair.policy.over)
    found = [gain(row, pair.name, over) for row in rows if {pair.name, over} <= {*row["policies"]}]
    return [each for each in found if math.isfinite(each)]


def _texts(row: Row) -> list[str]:
    return [_asked(row), *row["references"][:1], *(given["answer"] for given in row["policies"].values())]


def _asked(row: Row) -> str:
    turns = row["prompt"]
    return "\n".join(f"{turn['role']}: {turn['content']}" if len(turns) > 1 else turn["content"] for turn in turns)


def _case(row: Row, name: str, over: str, cut: int) -> dict[str, Any]:
    asked, *reference = [_shown(text, cut) for text in _texts(row)[: 1 + len(row["references"][:1])]]
    return {
        "prompt": asked,
        "reference": "".join(reference),
        "gain": round(gain(row, name, over), 4) if {name, over} <= {*row["policies"]} else 0,
        "given": [
            {
                "name": policy,
                "answer": _shown(given["answer"], cut),
                "length": len(given["answer"]),
                "headline": round(given["headline"], 3),
                "reward": round(given["reward"], 3),
                "judge": round(given["judge"], 3) if "judge" in given else None,
            }
            for policy, given in row["policies"].items()
        ],
    }


def _shown(text: str, cut: int) -> str:
    return text if len(text) <= cut else f"{text[:cut]}…"
