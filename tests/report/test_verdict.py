"""The verdict: what it needs to say "better", and what it says otherwise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rlrecipes.metrics import mean_interval
from rlrecipes.report.verdict import prompts_needed, side, verdict_of


def interval(value: float, half: float = 0.02) -> dict[str, float]:
    return {"value": value, "low": value - half, "high": value + half}


def records(
    examples: int = 300, style: dict[str, tuple[float, float]] | None = None, **measures: Any
) -> dict[str, Any]:
    """An evaluation of PPO over SFT; `style` has each property of SFT's and of PPO's answers."""
    gains = {
        f"{name}_gain": interval(now - before, abs(now - before) / 4) for name, (before, now) in (style or {}).items()
    }
    sides = [{name: {"value": values[i]} for name, values in (style or {}).items()} for i in (0, 1)]
    return {
        "evaluate": {
            "headline": "chrf",
            "examples": examples,
            "metrics": {},
            "style": {"sft": sides[0], "ppo": sides[1]},
            "comparisons": {"ppo_over_sft": {**measures, **gains}},
        }
    }


def sentence(**measures: Any) -> str:
    return verdict_of(records(**measures)).sentence


def test_better_is_said_where_both_temperatures_and_the_judge_are_above_no_difference():
    verdict = verdict_of(records(gain=interval(0.3), sampled_gain=interval(0.2), judge_win_rate=interval(0.7)))
    assert verdict.tone == "better"
    assert verdict.sentence == (
        "PPO is better than SFT: chrf +0.300 [0.280, 0.320], at temperature 1 +0.200 [0.180, 0.220], and the judge "
        "prefers PPO with a share of 0.700 [0.680, 0.720], on 300 held-out prompts."
    )


@pytest.mark.parametrize("name", ["gain", "sampled_gain", "judge_win_rate"])
def test_one_measure_that_shows_nothing_is_enough_for_not_shown(name):
    measures = {"gain": interval(0.3), "sampled_gain": interval(0.2), "judge_win_rate": interval(0.7)}
    measures[name] = interval(0.5 if name == "judge_win_rate" else 0.01)
    assert sentence(**measures).startswith("PPO is not shown to be better than SFT: ")
    assert verdict_of(records(**measures)).tone == "open"


def test_a_bound_that_prints_as_zero_is_not_above_zero():
    gain = {"value": 0.048, "low": 0.00003, "high": 0.096}
    assert side(gain) == "open"
    assert "not shown to be better" in sentence(gain=gain)
    assert side(gain | {"low": 0.0006}) == "above"


def test_what_is_not_shown_says_how_many_prompts_would_show_it():
    assert "Gains of this size need about 1,400 prompts to be shown." in sentence(gain=interval(0.01, 0.0148))
    assert "prompts to be shown" not in sentence(gain=interval(-0.01))


def test_that_many_prompts_show_a_gain_of_that_size_four_times_in_five():
    generator = np.random.default_rng(0)
    estimate = mean_interval((rows := generator.normal(0, 1, 400)).tolist())
    shift = 0.2 - rows.mean()
    needed = prompts_needed({"value": 0.2, "low": estimate.low + shift, "high": estimate.high + shift}, 400)
    shown = sum(
        (draws := generator.normal(0.2, 1, needed)).mean() > 1.96 * draws.std(ddof=1) / needed**0.5 for _ in range(2000)
    )
    assert shown / 2000 == pytest.approx(0.8, abs=0.05)


def test_worse_is_said_where_the_headline_is_below_and_nothing_is_above():
    assert sentence(gain=interval(-0.2), sampled_gain=interval(0.0)).startswith("PPO is worse than SFT: chrf −0.200")
    assert verdict_of(records(gain=interval(-0.2))).tone == "worse"


def test_a_judge_against_the_headline_is_told_as_a_disagreement():
    verdict = verdict_of(records(gain=interval(0.2), judge_win_rate=interval(0.3)))
    assert verdict.sentence.startswith("The measures disagree on PPO and SFT: chrf +0.200")
    assert verdict.tone == "open"


def test_a_handful_of_prompts_is_no_verdict():
    told = sentence(examples=9, gain=interval(0.3))
    assert told == "9 held-out prompts are too few to compare PPO with SFT; take 10 at least."


def test_a_change_of_language_is_told_in_words():
    style = {"language_de": (0.98, 0.05), "language_en": (0.0, 0.93), "language_fr": (0.01, 0.02)}
    style["language_tlh"] = (0.0, 0.2)
    assert verdict_of(records(gain=interval(0.05), style=style)).shifts == (
        "Its answers are in German less often (0.050, not 0.980).",
        "Its answers are in English more often (0.930, not 0.000).",
        "Its answers are in the language 'tlh' more often (0.200, not 0.000).",
    )
    assert verdict_of(records(gain=interval(0.05), style={"language_de": (0.98, 0.95)})).shifts == ()


def test_a_change_of_the_answers_is_part_of_the_verdict():
    style = {"words": (13.5, 7.4), "repetition": (0.01, 0.2), "ended": (0.99, 0.7), "copied": (0.1, 0.1)}
    assert verdict_of(records(gain=interval(0.05), style=style)).shifts == (
        "Its answers are 45 % shorter (7.4 words, not 13.5).",
        "Its answers repeat themselves more (0.200, not 0.010).",
        "Its answers are cut off more often (0.700, not 0.990).",
    )


def test_the_more_is_looked_at_the_wider_a_change_has_to_stand_out():
    """[0.001, 0.199] is above zero for one measure; among five it is not."""
    style = dict.fromkeys(("words", "ended", "copied", "refusals"), (0.1, 0.1))
    evaluation = records(gain=interval(0.05), style={"repetition": (0.1, 0.2)})
    evaluation["evaluate"]["comparisons"]["ppo_over_sft"]["repetition_gain"] = interval(0.1, 0.099)
    assert len(verdict_of(evaluation).shifts) == 1
    evaluation = records(gain=interval(0.05), style=style | {"repetition": (0.1, 0.2)})
    evaluation["evaluate"]["comparisons"]["ppo_over_sft"]["repetition_gain"] = interval(0.1, 0.099)
    assert verdict_of(evaluation).shifts == ()


def test_answers_of_no_words_that_become_some_have_no_percentage():
    verdict = verdict_of(records(gain=interval(0.05), style={"words": (0.0, 4.0)}))
    assert verdict.shifts == ("Its answers are longer (4.0 words, not 0.0).",)
