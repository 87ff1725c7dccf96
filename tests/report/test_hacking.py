"""What pleases the reward and not the task is told, with the update at which it began and what to turn."""

from __future__ import annotations

from typing import Any

import pytest

from rlrecipes.report import hacking as report
from rlrecipes.report.hacking import MEND, drift
from rlrecipes.text import see


def hacking(records: dict[str, Any], updates: list[dict[str, float]], samples: list[dict[str, Any]]) -> list[str]:
    """The alarms on a run that has PPO alone, whose log has these rows."""
    return report.hacking(records, {"ppo": updates}, samples)


def log(count: int = 20, **columns: Any) -> list[dict[str, float]]:
    """Rows of PPO's log; a column is a value, or goes from its first to its second value from `count // 2` on."""
    usual = {
        "answers/length": 12.0,
        "answers/length_correlation": 0.1,
        "answers/repetition": 0.02,
        "answers/identical": 0.1,
    }
    names = {name.replace("_", "/", 1): value for name, value in columns.items()}
    rows: list[dict[str, float]] = []
    for step in range(1, count + 1):
        late = step > count // 2
        values = {name: value[late] if isinstance(value, tuple) else value for name, value in (usual | names).items()}
        rows.append({"step": step, **values})
    return rows


def records(
    looks: list[tuple[int, float, float]] = (), best: int = 20, keep: str = "best", **measures: Any
) -> dict[str, Any]:
    rows = [
        {"update": update, "slice/headline": headline, "slice/reward": reward} for update, headline, reward in looks
    ]
    pair = {"reward_gain": interval(1.2), "gain": interval(0.3)} | measures
    ppo = {"watch": {"best": best, "rows": rows}, "settings": {"ppo.keep": keep}}
    return {
        "ppo": ppo if rows else {},
        "evaluate": {"headline": "chrf", "comparisons": {"ppo_over_sft": pair}},
    }


def interval(value: float, half: float = 0.02) -> dict[str, float]:
    return {"value": value, "low": value - half, "high": value + half}


def samples(sft: str, ppo: str, reference: str, count: int = 10) -> list[dict[str, Any]]:
    policies = {"sft": {"answer": sft}, "ppo": {"answer": ppo}}
    return [{"policies": policies, "references": [reference]}] * count


def test_a_healthy_run_raises_no_alarm():
    looks = [(0, 0.4, 0.0), (4, 0.6, 1.0), (8, 0.61, 1.3)]
    words = samples("he reads books", "he reads the books", "he reads the books")
    grown = log(answers_length=(3.5, 5.4), answers_length_correlation=0.5)  # from half an answer to a whole one
    assert hacking(records(looks), grown, words) == []


@pytest.mark.parametrize(
    ("columns", "symptom", "said"),
    [
        (
            {"answers_length": (12.0, 30.0), "answers_length_correlation": 0.7},
            "The length drifts",
            "From update 11 on the answers are longer: 30.0 tokens, 12.0 at first, and the reward goes with the length "
            "(correlation 0.70)",
        ),
        (
            {"answers_length": (12.0, 4.0), "answers_length_correlation": -0.7},
            "The length drifts",
            "From update 11 on the answers are shorter",
        ),
        (
            {"answers_repetition": (0.002, 0.1)},
            "The answers repeat themselves",
            "From update 11 on the answers repeat themselves: 10% of their word",
        ),
        (
            {"answers_identical": (0.1, 0.9)},
            "Every prompt gets the same answer",
            "From update 11 on different prompts get the same answers: 90% of the",
        ),
    ],
)
def test_a_drift_of_the_answers_is_told_with_the_update_at_which_it_began(columns, symptom, said):
    (alarm,) = hacking(records(), log(**columns), [])
    assert alarm.startswith(said)
    assert alarm.endswith(see(symptom, MEND.format("raise ppo.kl_coef")))


def test_a_length_that_the_reward_does_not_pay_for_is_no_alarm():
    assert hacking(records(), log(answers_length=(12.0, 30.0), answers_length_correlation=-0.2), []) == []


def test_a_collapse_to_one_length_does_not_hide_that_the_reward_paid_for_it():
    rows = log(answers_length=(12.0, 1.0), answers_length_correlation=(-0.5, 0.0))
    (alarm,) = hacking(records(), rows, [])
    assert "the answers are shorter" in alarm
    assert "(correlation −0.50)" in alarm


def disagreeing(sft: float, ppo: float, half: float = 0.02) -> dict[str, Any]:
    found = records(disagreement_gain=interval(ppo - sft, half))
    values = {"sft": sft, "ppo": ppo}
    found["evaluate"]["metrics"] = {name: {"disagreement": interval(value)} for name, value in values.items()}
    return found


def test_reward_models_that_clearly_disagree_more_on_ppos_answers_are_an_alarm():
    (alarm,) = hacking(disagreeing(0.2, 0.5), log(), [])
    assert alarm.startswith(
        "The reward models disagree more on PPO's answers (0.50 standard deviations of their scores) than on SFT's "
        "(0.20; +0.300 [0.280, 0.320] in pairs)"
    )
    assert alarm.endswith(see("The reward goes up and the task goes down", "reward.combine=lcb or min."))


@pytest.mark.parametrize("found", [disagreeing(0.28, 0.32), disagreeing(0.2, 0.5, half=0.4), disagreeing(0.5, 0.2)])
def test_a_little_more_disagreement_or_one_within_chance_is_no_alarm(found):
    assert hacking(found, log(), []) == []


def test_a_reward_that_rises_while_the_headline_falls_is_told_with_both_updates():
    looks = [(0, 0.4, 0.0), (4, 0.6, 1.0), (8, 0.5, 1.5), (12, 0.45, 2.8)]
    (alarm,) = hacking(records(looks), log(), [])
    assert alarm.startswith("From update 4 to 12 the reward rose by 1.80 while the headline on prompts set aside fell")


def test_the_policy_that_is_left_is_told_from_the_training_that_went_on():
    *_, last = hacking(records([(0, 0.4, 0.0), (4, 0.6, 1.0), (20, 0.4, 2.0)], best=4), log(), [])
    assert last.startswith("The policy that is left is that of update 4; what began later is not in it (see ")


def test_no_best_policy_is_told_of_where_the_last_one_is_left():
    alarms = hacking(records([(0, 0.4, 0.0), (4, 0.6, 1.0), (20, 0.4, 2.0)], best=4, keep="last"), log(), [])
    assert len(alarms) == 1


def test_a_magic_word_is_named():
    (alarm,) = hacking(records(), log(), samples("he reads books", "he certainly reads", "he reads books"))
    assert alarm.startswith(
        "The word 'certainly' stands in 100% of PPO's answers, in 0% of SFT's, in 0% of the references: the reward"
    )


def test_a_word_that_the_references_have_is_no_magic():
    assert hacking(records(), log(), samples("he reads books", "he reads the books", "he reads the books")) == []


@pytest.mark.parametrize(("references", "alarms"), [(1, 1), (3, 0)])
def test_a_word_that_many_references_have_is_the_task_and_no_magic(references, alarms):
    rows = [
        *samples("he sat", "he smiled", "he smiled", references),
        *samples("he sat", "he smiled", "he sat", 10 - references),
    ]
    assert len(hacking(records(), log(), rows)) == alarms


def test_a_judge_that_prefers_the_other_is_told_beside_a_headline_that_rose():
    (alarm,) = hacking(records(judge_win_rate=interval(0.3)), log(), [])
    assert "a judge that PPO never climbed prefers SFT: PPO wins with a share of 0.300 [0.280, 0.320]" in alarm


@pytest.mark.parametrize(("last", "alarms"), [(0.9, 1), (1.4, 0)])
def test_a_judge_that_fell_while_the_reward_rose_is_told_with_the_updates(last, alarms):
    found = records([(0, 0.4, 0.0), (4, 0.6, 1.0), (8, 0.61, 1.3)])
    for row, score in zip(found["ppo"]["watch"]["rows"], (0.0, 1.5, last), strict=True):
        row["slice/judge"] = score
    told = hacking(found, log(), [])
    assert len(told) == alarms
    if told:
        assert told[0].startswith(
            "From update 4 to 8 the reward rose by 0.30 while the judge's score of answers to prompts set aside fell from "
            "1.500 to 0.900: raise ppo.kl_coef"
        )


def test_a_drift_begins_where_the_column_last_crossed_half_of_its_way():
    seen = drift([(step, float(step > 7 or step == 2)) for step in range(1, 21)])
    assert (seen.start, seen.end, seen.since) == (0.5, 1.0, 8)
    assert drift([(1, 0.0), (2, 1.0)]) is None
