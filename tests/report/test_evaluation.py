"""What the page says of an evaluation: the judge, the pairs, the KL, how answers look, and what a run was made with."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from report.test_page import Page, close, fake_run, interval, page_of, update

from rlrecipes.report.evaluation import judge_sentence
from rlrecipes.run.folder import Run


def judged_run(root: Path, **record: Any) -> Run:
    """A run whose evaluation holds all that evaluations hold now."""
    run = fake_run(root)
    names = ("base", "sft", "best4", "ppo", "runs/other")
    pair = {
        "gain": interval(0.3),
        "reward_gain": interval(0.9),
        "judge_win_rate": interval(0.82),
        "words_gain": interval(-0.4),
        "language_de_gain": interval(0.3),
    }
    style = {
        "words": interval(8),
        "distinct_2": interval(0.25),
        "perplexity": interval(31),
        "language_de": interval(0.9),
    }
    whole = {
        "metrics": {name: {"chrf": interval(0.5), "reward": interval(0.9)} for name in names},
        "style": dict.fromkeys(names, style),
        "comparisons": {"a_over_b_over_sft": {"gain": interval(0.1)}, "ppo_over_sft": pair},
        "judge": {"name": "a second reward model", "accuracy": interval(0.73), "held_out": 274},
        "kl": {"ppo": interval(1.04)},
        "kl_bound": {"best4": 0.636},
    }
    close(run, "evaluate", **{"headline": "chrf", "examples": 300, **whole, **record})
    return run


def rows_of(page: str, caption: str) -> dict[str, str]:
    """The text of a table's rows, by the text of their heads."""
    body = page.partition(f"<caption>{caption}</caption>")[2].partition("</table>")[0]
    rows = re.findall(r'<th scope="row">(.*?)</th>(.*?)</tr>', body, re.S)
    return {re.sub(r"<.*?>", "", head).strip(): re.sub(r"<.*?>", " ", cells) for head, cells in rows}


def test_all_policies_stand_side_by_side_with_their_divergence(tmp_path: Path) -> None:
    page = page_of(judged_run(tmp_path))
    head = page.partition("<caption>What the policies reach</caption>")[2].partition("</thead>")[0]
    assert re.findall(r">([^<]+)</th>", head) == ["metric", "base", "SFT", "best of 4", "PPO", "runs/other"]
    kl = rows_of(page, "What the policies reach")["KL from SFT nats per answer"].split()
    assert kl == ["–", "–", "≤", "0.636", "1.040", "[1.020,", "1.060]", "–"]


def test_pairs_have_what_the_judge_says_of_them(tmp_path: Path) -> None:
    page = page_of(judged_run(tmp_path))
    rows = rows_of(page, "In pairs")
    assert '<th scope="col">a_over_b over SFT</th>' in page
    assert rows["gain in chrf headline"].split()[0] == "+0.100"
    assert rows["win rate by the judge"].split() == ["–", "0.820", "[0.800,", "0.840]"]
    assert "win rate in reward" not in rows


def test_the_style_of_answers_ends_with_the_paired_difference(tmp_path: Path) -> None:
    rows = rows_of(page_of(judged_run(tmp_path)), "How the answers look")
    assert rows["words"].split()[-3:] == ["−0.400", "[−0.420,", "−0.380]"]
    assert rows["distinct_2 different word pairs among all"].split()[-1] == "–"
    assert rows["perplexity under the bare base"].split()[0] == "31.0"
    assert rows["in German share of answers whose language is clear"].split()[-3] == "+0.300"


@pytest.mark.parametrize(
    ("judge", "sentence"),
    [
        (
            {"name": "a second reward model", "accuracy": interval(0.73), "held_out": 274},
            "The judge: a second reward model, accuracy 0.730 [0.710, 0.750] on 274 held-out rows. PPO never climbed it.",
        ),
        ({"missing": "no preferences are held out"}, "No judge: no preferences are held out."),
        (
            {"name": "m", "url": "http://localhost:1/v1", "prompts": 300},
            "The judge: m, asked at http://localhost:1/v1 about 300 prompts. PPO never climbed it.",
        ),
        ({}, ""),
    ],
)
def test_the_judge_is_named_with_its_worth_or_with_why_there_is_none(judge: dict[str, Any], sentence: str) -> None:
    assert judge_sentence(judge, "PPO") == sentence


def test_what_the_reward_costs_is_drawn_beside_the_best_of_n(tmp_path: Path) -> None:
    page = page_of(judged_run(tmp_path))
    assert (
        "Reward against KL: PPO from 0.388 at 0.100 nats to 2.407 at 10.000 nats; best of 4 0.900 at 0.636 nats at most"
        in page
    )
    assert "best of 4 </text>" in page


@pytest.mark.parametrize(("keep", "kept"), [("best", 4), ("last", 8)])
def test_the_curve_of_looks_marks_the_policy_that_was_kept(tmp_path: Path, keep: str, kept: int) -> None:
    run = fake_run(tmp_path)
    rows = [{"update": u, "slice/headline": 0.5 + u * (8 - u) / 40, "slice/reward": u / 8} for u in (0, 4, 8)]
    close(run, "ppo", watch={"prompts": 64, "best": 4, "rows": rows}, settings={"ppo.keep": keep})
    page = page_of(run)
    assert f"of the policy kept, update {kept}" in page
    assert page.count('<circle class="mark"') == 2


def test_a_path_with_one_finite_update_is_not_drawn(tmp_path: Path) -> None:
    rows = [update(1), update(2) | {"objective/kl": float("nan")}]
    assert "What reward costs" not in page_of(fake_run(tmp_path, updates=rows))


def test_the_page_says_what_the_run_was_made_with_and_how_to_make_it_again(tmp_path: Path) -> None:
    text = Page(page_of(fake_run(tmp_path))).text
    facts = text.partition("What the policies reach")[0]
    for fact in ("built-in", "seed0", "2025-01-01T00:00:00Z", "make translation"):
        assert fact in facts
