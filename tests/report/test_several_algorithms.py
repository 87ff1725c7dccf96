"""The page, its alarms and the tables on runs that trained several algorithms, or another one than PPO."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from report.test_compare import PROMPTS, made, sides
from report.test_evaluation import rows_of
from report.test_page import Page, fake_run, interval, page_of, update, write_lines

from rlrecipes.report import page as report
from rlrecipes.report.compare import compare, pairings
from rlrecipes.report.evaluation import judge_sentence
from rlrecipes.report.hacking import hacking
from rlrecipes.report.listing import listing
from rlrecipes.report.plots import curves
from rlrecipes.report.records import json_lines
from rlrecipes.report.verdict import verdict_of
from rlrecipes.report.warnings import warnings
from rlrecipes.run.folder import Run

LOOKS = [{"update": u, "slice/headline": 0.5 + u * (8 - u) / 40, "slice/reward": u / 8} for u in (0, 4, 8)]


GROUPS = {"groups/best": 1.2, "groups/spread": 0.5, "groups/flat": 0.1}


def trained_by(run: Run, *names: str, **more: Any) -> Run:
    """A made-up run of PPO, as one that these algorithms trained; `more` goes into the record of its evaluation."""
    ppo = run.stage("ppo")
    record, log = json.loads((ppo / "done.json").read_text()), json_lines(ppo / "log.jsonl")
    for path in ppo.iterdir():
        path.unlink()
    for name in names:
        rows = log if name == "ppo" else [row | GROUPS for row in log]
        write_lines(run.stage(name) / "log.jsonl", rows)
        write_lines(run.stage(name) / "samples.jsonl", [{"step": 1, "prompt": "Say 1", "answer": f"by {name}"}])
        (run.stage(name) / "done.json").write_text(json.dumps(record | {"stage": name}))
    path = run.stage("evaluate") / "done.json"
    evaluation = json.loads(path.read_text()) | more
    for part, key in (("metrics", "{}"), ("comparisons", "{}_over_sft")):
        of_ppo = evaluation[part].pop(key.format("ppo"))
        evaluation[part] |= {key.format(name): of_ppo for name in names}
    path.write_text(json.dumps(evaluation))
    samples = json_lines(run.stage("evaluate") / "samples.jsonl")
    for row in samples:
        row["policies"] |= dict.fromkeys(names, row["policies"].pop("ppo"))
    write_lines(run.stage("evaluate") / "samples.jsonl", samples)
    return run


def records(*names: str, **of_each: Any) -> dict[str, Any]:
    """The records of finished algorithms that evaluation compared with SFT; `of_each` are parts of their own."""
    pair = {"gain": interval(0.3), "reward_gain": interval(1.2)}
    evaluation = {"headline": "chrf", "examples": 300, "comparisons": {f"{name}_over_sft": pair for name in names}}
    return {name: {"settings": {}, **of_each} for name in names} | {"evaluate": evaluation}


def test_the_page_shows_how_each_algorithm_trained(tmp_path: Path) -> None:
    page = page_of(trained_by(fake_run(tmp_path), "ppo", "rloo", "grpo"))
    text = Page(page).text
    for title in ("PPO", "RLOO", "GRPO"):
        assert f'<h3 class="group">{title}</h3>' in page
        assert f"{title}’s steps" in text
        assert f"The same prompts while {title} trained" in text
    assert page.count("by rloo") == page.count("by grpo") == 1
    assert page.count("<b>Prompts without a difference</b>") == 2, "PPO has one answer to a prompt"
    assert "The reward is what PPO, RLOO and GRPO climbed: that it grows proves nothing." in text


def test_what_passes_is_drawn_where_it_was_measured_in_every_update(tmp_path: Path) -> None:
    rows = [{"step": step, "pass/right@1": step / 9, "pass/right@4": step / 5} for step in (1, 2, 3)]
    for row in rows[:2]:
        row["pass/by chance@1"] = 0.0
    groups = dict(curves(Run("r", "translation", tmp_path), {"rloo": {}}, {"rloo": rows}))
    assert [(plot.title, plot.note) for plot in groups["RLOO"]] == [
        ("pass@1: right", "share of answers that pass"),
        ("pass@4: right", "share of prompts, one of 4 passes"),
    ]


def test_what_the_reward_costs_is_drawn_for_each_algorithm_on_the_same_axes(tmp_path: Path) -> None:
    page = page_of(trained_by(fake_run(tmp_path), "ppo", "grpo"))
    assert "Reward against KL: PPO from 0.388 at 0.100 nats to 2.407 at 10.000 nats; GRPO from 0.388 at 0.100" in page
    drawn = page.partition("What reward costs in KL")[2].partition("</figure>")[0]
    assert ">PPO</text>" in drawn
    assert ">GRPO</text>" in drawn
    alone = page_of(fake_run(tmp_path / "alone")).partition("What reward costs in KL")[2].partition("</figure>")[0]
    assert "last update</text>" in alone
    assert ">PPO</text>" not in alone


def test_a_page_without_ppo_does_not_speak_of_it(tmp_path: Path) -> None:
    run = trained_by(fake_run(tmp_path), "grpo", judge={"name": "a second reward model"})
    text = Page(page_of(run)).text
    assert "GRPO is better than SFT: chrf +0.310 [0.280, 0.340], on 300 held-out prompts." in text
    assert "GRPO never climbed it." in text
    assert "GRPO scored higher than SFT on 4 of 11 prompts" in text
    assert "PPO" not in text.replace("GRPO", "")
    assert report.short_table([run]).splitlines()[0].split()[:8] == [
        *("recipe", "headline", "base", "SFT", "GRPO", "GRPO", "over", "SFT,")
    ]
    assert "GRPO 0.733" in listing([run])


def test_all_algorithms_of_a_run_are_listed_each_with_its_gain(tmp_path: Path) -> None:
    runs = [trained_by(fake_run(tmp_path), "ppo", "rloo", "grpo"), fake_run(tmp_path, "dialogue")]
    of_grpo = runs[0].stage("evaluate") / "done.json"
    record = json.loads(of_grpo.read_text())
    record["metrics"]["grpo"] = record["metrics"]["grpo"] | {"chrf": interval(0.9)}
    record["comparisons"]["grpo_over_sft"] = record["comparisons"]["grpo_over_sft"] | {"gain": interval(0.5)}
    of_grpo.write_text(json.dumps(record))
    heads, *lines = listing(runs).splitlines()
    assert [re.split(r"  +", line)[:6] for line in lines[:3]] == [
        ["tiny", "translation", "chrf", "PPO 0.733", "+0.310 [0.280, 0.340]", "finished up to evaluate"],
        ["", "RLOO 0.733", "+0.310 [0.280, 0.340]"],
        ["", "GRPO 0.900", "+0.500 [0.480, 0.520]"],
    ]
    assert lines[3].split()[:2] == ["tiny", "dialogue"]
    assert max(map(len, (heads, *lines))) <= 100


def test_tables_of_five_policies_fit_a_hundred_columns_and_say_what_they_left_out(tmp_path: Path) -> None:
    run = trained_by(fake_run(tmp_path, "question_answering"), "ppo", "rloo", "grpo")
    heads, _, row, *last = report.short_table([run]).splitlines()
    assert max(map(len, (heads, row))) <= 100
    assert heads.split()[:7] == ["recipe", "headline", "base", "SFT", "RLOO", "GRPO", "PPO"]
    assert "+0.310 [0.280, 0.340]" in row
    assert last == ["left out for width: time"]
    for name, score in (("mine", 0.5), ("other", 0.7)):
        trained_by(made(tmp_path, name, [score] * PROMPTS, recipe="question_answering"), "ppo", "rloo", "grpo")
    text = compare(["mine", "other"], root=tmp_path)[1].splitlines()
    assert max(map(len, text[:3])) <= 100
    assert text[0].split()[:7] == ["question_answering", "headline", "base", "SFT", "RLOO", "GRPO", "PPO"]
    assert text[2].split()[:7] == ["other", "chrf", "0.000", "0.500", "0.700", "0.700", "0.700"]
    assert "+0.200 [0.200, 0.200]" in text[2]


def test_a_table_over_several_recipes_has_the_same_columns_for_all(tmp_path: Path) -> None:
    runs = [trained_by(fake_run(tmp_path), "grpo"), fake_run(tmp_path, "dialogue")]
    page = report.combine(runs).read_text(encoding="utf-8")
    assert '<th scope="col">SFT</th><th scope="col">GRPO</th><th scope="col">PPO</th><th scope="col">PPO over' in page
    values = rows_of(page, "All recipes")
    assert values["dialogue"].split()[7] == "–", "it has no GRPO"
    assert values["translation"].split()[7:11] == ["0.733", "[0.713,", "0.753]", "–"], "and this no PPO"


def test_the_judges_curve_and_the_mark_of_the_policy_kept_are_each_algorithms_own(tmp_path: Path) -> None:
    looks = [row | {"slice/judge": 1.0 + row["update"]} for row in LOOKS]
    best, last = {"watch": {"best": 4, "rows": looks}}, {"watch": {"best": 4, "rows": looks[:]}}
    found = {
        "rloo": {"settings": {"rloo.keep": "best", "ppo.keep": "last"}, **best},
        "grpo": {"settings": {"grpo.keep": "last"}, **last},
    }
    groups = dict(curves(Run("r", "translation", tmp_path), found, {"rloo": [], "grpo": []}))
    assert "of the policy kept, update 4" in groups["RLOO"][0].words
    assert "of the policy kept, update 8" in groups["GRPO"][0].words
    assert [groups[title][2].note for title in groups] == [
        f"its score of the same answers, which {title} does not climb" for title in ("RLOO", "GRPO")
    ]


def test_an_early_stop_is_told_of_the_algorithm_that_stopped() -> None:
    found = records("ppo", "rloo")
    found["rloo"]["stopped"] = "the KL per answer was 51.0 in the batch of update 3, above rloo.kl_stop=50"
    cut = [update(step, ended=0.5) for step in range(1, 9)]
    first, second = warnings(found, {"ppo": [], "rloo": cut})
    assert first.startswith("RLOO was stopped before its end: the KL per answer was 51.0")
    assert '(see "The KL explodes" in' in first
    assert second.startswith("At the end of RLOO only 50% of the answers ended by themselves")


def test_every_algorithm_below_the_base_is_told() -> None:
    found = records("ppo", "rloo", "grpo")
    values = {"base": 0.8, "ppo": 0.9, "rloo": 0.7, "grpo": 0.6}
    found["evaluate"]["metrics"] = {name: {"chrf": interval(value)} for name, value in values.items()}
    said = warnings(found, {"ppo": [], "rloo": [], "grpo": []})
    assert [sentence.partition(" stays")[0] for sentence in said] == [
        *("For all the training, RLOO", "For all the training, GRPO")
    ]


def drifting(**late: float) -> list[dict[str, float]]:
    """A log in whose second half some of the answers' columns have other values."""
    usual = {"answers/length": 12.0, "answers/repetition": 0.02, "answers/identical": 0.1}
    changed = usual | {f"answers/{name}": value for name, value in late.items()}
    return [{"step": step, **(changed if step > 10 else usual)} for step in range(1, 21)]


def test_an_alarm_names_its_algorithm_among_several_and_the_setting_to_turn() -> None:
    found = records("ppo", "rloo")
    found["rloo"]["watch"] = {"best": 4, "rows": [row | {"slice/headline": 1 - row["update"] / 10} for row in LOOKS]}
    found["rloo"]["watch"]["best"] = 0
    parted, monotony, left = hacking(found, {"ppo": drifting(), "rloo": drifting(repetition=0.5)}, [])
    assert parted.startswith("RLOO: from update 0 to 8 the reward rose by 1.00 while the headline on prompts set aside")
    assert "raise rloo.beta, or stop there (rloo.keep=best leaves that policy)" in parted
    assert monotony.startswith("RLOO: from update 11 on the answers repeat themselves: 50% of their word trigrams")
    assert "raise rloo.beta, or stop earlier" in monotony
    assert left.startswith("RLOO: the policy that is left is that of update 0; what began later is not in it")


@pytest.mark.parametrize("name", ["ppo", "rloo"])
def test_prompts_that_come_to_get_the_same_answers_are_told_whatever_the_algorithm(name: str) -> None:
    rows = [row | (GROUPS if name == "rloo" else {}) for row in drifting(identical=0.9)]
    (alarm,) = hacking(records(name), {name: rows}, [])
    assert (
        "different prompts get the same answers: 90% of the answers equal one to another prompt, 10% at first" in alarm
    )


def test_a_policy_that_the_judge_does_not_like_is_told_though_another_algorithm_is_the_last() -> None:
    found = records("ppo", "rloo")
    found["evaluate"]["comparisons"]["rloo_over_sft"] = {
        "gain": interval(0.3),
        "reward_gain": interval(1.2),
        "judge_win_rate": interval(0.3),
    }
    (alarm,) = hacking(found, {"ppo": [], "rloo": []}, [])
    assert "a judge that RLOO never climbed prefers SFT: RLOO wins with a share of 0.300" in alarm
    assert "Raise rloo.beta, train for fewer updates" in alarm


def test_a_judge_had_a_say_in_the_algorithms_that_it_ended_and_in_no_other() -> None:
    judge = {"name": "a second reward model", "ended": ["rloo"]}
    said = judge_sentence(judge, "PPO and RLOO")
    assert said.endswith(
        "PPO and RLOO never climbed it, but it ended RLOO, so it is not wholly independent of the policy."
    )
    for name, also in (("rloo", "the judge, which also ended RLOO, prefers"), ("ppo", "the judge prefers PPO")):
        found = records(name)
        found["evaluate"]["comparisons"][f"{name}_over_sft"]["judge_win_rate"] = interval(0.7)
        found["evaluate"]["judge"] = judge
        assert also in verdict_of(found).sentence


@pytest.mark.parametrize(("names", "tone"), [(["ppo"], "better"), (["best16"], "open")])
def test_an_algorithm_that_was_not_run_leaves_the_verdict_on_one_that_was(names: list[str], tone: str) -> None:
    found = records(*names)
    found["evaluate"] |= {"withheld": "the reward model is at chance", "not_run": ["rloo"]}
    verdict = verdict_of(found)
    assert verdict.tone == tone
    assert verdict.sentence.startswith("RLOO was not run: the reward model is at chance. ")
    assert "is better than SFT" in verdict.sentence


def test_two_runs_of_one_algorithm_each_are_drawn_on_the_same_axes(tmp_path: Path) -> None:
    made(tmp_path, "mine", [0.5] * PROMPTS)
    trained_by(made(tmp_path, "other", [0.7] * PROMPTS), "grpo")
    (pairing,) = pairings(sides(tmp_path, "mine", "other"))
    assert pairing.name == "GRPO of other over PPO of mine"
    page, text = compare(["mine", "other"], root=tmp_path)
    html = page.read_text(encoding="utf-8")
    assert html.count('<polyline class="run0"') == html.count('<polyline class="run1"') == 2
    assert "<b>Reward</b>" in html
    assert text.splitlines()[0].split()[2:7] == ["base", "SFT", "GRPO", "PPO", "PPO"]


def test_runs_of_several_algorithms_are_drawn_algorithm_by_algorithm(tmp_path: Path) -> None:
    trained_by(made(tmp_path, "mine", [0.5] * PROMPTS), "ppo", "rloo")
    trained_by(made(tmp_path, "other", [0.7] * PROMPTS), "rloo")
    html = compare(["mine", "other"], root=tmp_path)[0].read_text(encoding="utf-8")
    assert "Reward, weighted sum of the terms" not in html.replace("PPO: Reward", "").replace("RLOO: Reward", "")
    of_ppo, of_rloo = (
        html.partition(f"<b>{name}: Reward</b>")[2].partition("</figure>")[0] for name in ("PPO", "RLOO")
    )
    assert ('class="run0"' in of_ppo, 'class="run1"' in of_ppo) == (True, False)
    assert ('class="run0"' in of_rloo, 'class="run1"' in of_rloo) == (True, True)
