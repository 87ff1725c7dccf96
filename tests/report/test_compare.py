"""Runs side by side, from run folders made up here: what differs, what is more than chance, and what cannot be told."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from rlrecipes.errors import UserError
from rlrecipes.metrics import mean_interval
from rlrecipes.report.compare import MOST, changes, compare, over_seeds, pairings, sides_of
from rlrecipes.report.listing import find_runs, listing
from rlrecipes.run.folder import Run
from rlrecipes.run.lock import locked
from rlrecipes.run.settings import Settings, write_settings

PROMPTS = 40


def made(
    root: Path, name: str, scores: list[float], recipe: str = "translation", asked: str = "p", **settings: Any
) -> Run:
    """A run up to its evaluation, whose PPO policy got these scores and whose SFT policy got 0.5 each time."""
    run = Run(name, recipe, root)
    values = {"base": [0.0] * len(scores), "sft": [0.5] * len(scores), "ppo": scores}
    rows = [
        {
            "prompt": [{"role": "user", "content": f"{asked}{i}"}],
            "references": ["r"],
            "policies": {name: {"answer": "a", "headline": of[i], "reward": 0.0} for name, of in values.items()},
        }
        for i in range(len(scores))
    ]
    gain = mean_interval([score - 0.5 for score in scores]).as_json()
    evaluation = {
        "headline": "chrf",
        "examples": len(scores),
        "metrics": {name: {"chrf": mean_interval(of).as_json()} for name, of in values.items()},
        "comparisons": {"ppo_over_sft": {"gain": gain, "reward_gain": gain}},
    }
    logs = {"ppo": [{"step": i, "objective/scores": i / 9, "terms/chrf": 0.1 * i} for i in (1, 2, 3)]}
    for stage in ("sft", "ppo", "evaluate"):
        folder = run.stage(stage)
        folder.mkdir(parents=True)
        record = {
            "stage": stage,
            "settings": {"seed": 0, "ppo.kl_coef": 0.05, "terms.learned": 1.0} | settings,
            "seconds": 5,
            "finished": "2026-01-02T03:04:05Z",
            "versions": {"torch": "2.13.0"},
            "git_commit": "abc",
            **(evaluation if stage == "evaluate" else {}),
        }
        (folder / "done.json").write_text(json.dumps(record))
        (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in logs.get(stage, [])))
    (run.stage("evaluate") / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


def sides(root: Path, *names: str) -> Any:
    return sides_of(names, None, root)["translation"]


def test_the_same_prompts_are_compared_answer_against_answer(tmp_path: Path) -> None:
    noise = [(7 * i % 11) / 11 for i in range(PROMPTS)]  # far more between the prompts than between the runs
    made(tmp_path, "mine", noise)
    made(tmp_path, "better", [score + 0.02 for score in noise])
    made(tmp_path, "worse", [score - 0.01 - 0.001 * i for i, score in enumerate(noise)])
    made(tmp_path, "other", [*noise[1:], noise[0]])
    pairs = pairings(sides(tmp_path, "mine", "better", "worse", "other"))
    assert [pair.name for pair in pairs] == ["better over mine", "worse over mine", "other over mine"]
    assert [pair.tone for pair in pairs] == ["better", "worse", "open"]
    assert pairs[0].gain == {"value": 0.02, "low": 0.02, "high": 0.02}
    assert pairs[2].verdict == "no difference shown on 40 held-out prompts"


def test_a_run_without_ppo_is_told_by_its_sft_and_not_by_the_best_of_n(tmp_path: Path) -> None:
    made(tmp_path, "mine", [0.7] * PROMPTS)
    weak = made(tmp_path, "weak", [0.1] * PROMPTS)
    record = json.loads((weak.stage("evaluate") / "done.json").read_text())
    record["metrics"]["best16"] = record["metrics"].pop("ppo")
    pair = record["comparisons"]["ppo_over_sft"]
    record["comparisons"] = {"sft_over_base": pair, "best16_over_sft": pair}
    (weak.stage("evaluate") / "done.json").write_text(json.dumps(record))
    assert "SFT 0.500" in listing([weak])
    (pairing,) = pairings(sides(tmp_path, "weak", "mine"))
    assert pairing.name == "PPO of mine over SFT of weak"
    assert pairing.gain is not None
    assert pairing.gain["value"] == pytest.approx(0.2)


def test_what_cannot_be_paired_is_told(tmp_path: Path) -> None:
    made(tmp_path, "mine", [0.5] * PROMPTS)
    made(tmp_path, "elsewhere", [0.6] * PROMPTS, asked="q")
    made(tmp_path, "few", [0.6] * 5)
    (made(tmp_path, "early", [0.6] * PROMPTS).stage("evaluate") / "done.json").unlink()
    (first, second, third) = pairings(sides(tmp_path, "mine", "elsewhere", "few", "early"))
    assert first.verdict == second.verdict == "cannot be paired: they answered different held-out prompts"
    assert third.verdict == "cannot be paired: early has no evaluation yet"
    assert {pair.gain for pair in (first, second, third)} == {None}
    made(tmp_path, "few-2", [0.9] * 5)
    (pair,) = pairings(sides(tmp_path, "few", "few-2"))
    assert (pair.verdict, pair.tone) == ("too few held-out prompts (5) to tell", "open")


def test_only_what_differs_is_listed_and_a_term_that_is_left_out_weighs_nothing(tmp_path: Path) -> None:
    made(tmp_path, "mine", [0.5] * PROMPTS, **{"terms.chrf": 0.3})
    made(tmp_path, "kl", [0.5] * PROMPTS, **{"ppo.kl_coef": 0.1})
    assert changes(sides(tmp_path, "mine", "kl")) == {"ppo.kl_coef": [0.05, 0.1], "terms.chrf": [0.3, 0]}


def test_runs_that_differ_in_the_seed_alone_have_a_mean_and_a_spread(tmp_path: Path) -> None:
    for seed, score in enumerate((0.6, 0.7, 0.8)):
        made(tmp_path, f"mine-seed{seed}", [score] * PROMPTS, seed=seed)
    made(tmp_path, "kl", [0.9] * PROMPTS, seed=3, **{"ppo.kl_coef": 0.1})
    (row,) = over_seeds(sides(tmp_path, "mine-seed0", "mine-seed1", "mine-seed2", "kl"))
    assert row == ["0, 1, 2", "0.000 ± 0.000", "0.500 ± 0.000", "0.700 ± 0.100", "+0.200 ± 0.100"]


def test_the_page_needs_nothing_but_a_browser_and_shows_both_curves_on_the_same_axes(tmp_path: Path) -> None:
    made(tmp_path, "mine", [0.5] * PROMPTS)
    made(tmp_path, "kl", [0.7] * PROMPTS, **{"ppo.kl_coef": "<b>"})
    page, text = compare(["mine", "kl"], root=tmp_path)
    assert page == tmp_path / "compare-mine-kl" / "index.html"
    html = page.read_text(encoding="utf-8")
    assert not re.findall(r"(src|href)=", html)
    assert "<b>" not in html.split("<td>0.05</td>")[1][:40], "values are escaped"
    assert html.count('<polyline class="run0"') == html.count('<polyline class="run1"') == 2
    assert "kl over mine: chrf +0.200 [0.200, 0.200], better, on 40 held-out prompts." in html
    assert "kl over mine: +0.200 [0.200, 0.200], better, on 40 held-out prompts" in text
    assert "they differ in ppo.kl_coef" in text
    assert max(map(len, text.splitlines())) <= 140


def test_the_page_has_each_recipe_that_two_runs_share(tmp_path: Path) -> None:
    for name in ("mine", "kl"):
        made(tmp_path, name, [0.5] * PROMPTS)
        made(tmp_path, name, [0.5] * PROMPTS, recipe="dialogue")
    made(tmp_path, "kl", [0.5] * PROMPTS, recipe="summary")
    assert list(sides_of(["mine", "kl"], None, tmp_path)) == ["dialogue", "translation"]
    assert list(sides_of(["mine", "kl"], "dialogue", tmp_path)) == ["dialogue"]
    compare(["mine", "kl"], root=tmp_path)
    with pytest.raises(UserError, match="mine, kl have no summary in common"):
        sides_of(["mine", "kl"], "summary", tmp_path)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["mine"], f"name two to {MOST} runs, each once (RUNS='…'); of these: kl, mine"),
        (["mine", "mine"], "each once"),
        (["mine", "kk"], "there is no run 'kk'; did you mean 'kl'?"),
        ([], "name two"),
    ],
)
def test_names_that_cannot_be_meant_are_one_line(tmp_path: Path, names: list[str], said: str) -> None:
    made(tmp_path, "mine", [0.5])
    made(tmp_path, "kl", [0.5])
    with pytest.raises(UserError, match=re.escape(said)):
        sides_of(names, None, tmp_path)
    assert not list(tmp_path.glob("compare*"))


def test_all_runs_are_listed_with_what_they_reached_and_how_far_they_are(tmp_path: Path) -> None:
    done = made(tmp_path, "whole", [0.7] * PROMPTS)
    done.stage("report").mkdir()
    (done.stage("report") / "done.json").write_text('{"finished": "2026-01-03T00:00:00Z"}')
    (made(tmp_path, "cut", [0.7]).stage("evaluate") / "done.json").unlink()
    Run("cut", "translation", tmp_path).draft("evaluate").mkdir()
    (tmp_path / "not a run" / "x" / "sft").mkdir(parents=True)
    (tmp_path / "not a run" / "x" / "sft" / "done.json").write_text("{}")
    (tmp_path / ".base").mkdir()
    cut, whole, last = listing(find_runs(tmp_path)).splitlines()[1:]
    assert re.split(r"  +", whole) == [
        *("whole", "translation", "chrf", "PPO 0.700", "+0.200 [0.200, 0.200]"),
        *("finished", "–"),
    ]
    assert last == "left out for width: profile, date"
    assert "interrupted at evaluate" in cut
    for model, shown in (
        ("/a/very/long/path/to/models/stories", "stories"),
        ("Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-0.5B"),
    ):
        write_settings(done.folder, Settings("translation", "own", "", 0, tables={"model": {"name": model}}))
        assert re.search(rf"  finished  +{shown}  +own", listing([done]))
    with locked(done.folder):
        assert "at work" in listing([done])
