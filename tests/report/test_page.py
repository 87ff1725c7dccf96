"""The report, from run folders made up here: what it says, what it leaves out, and that it is safe to open."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from rlrecipes.errors import UserError
from rlrecipes.job import Job
from rlrecipes.report import page as report
from rlrecipes.report.hacking import hacking
from rlrecipes.report.records import finished_records, json_lines
from rlrecipes.report.warnings import warnings
from rlrecipes.run.folder import Run
from rlrecipes.stages import report as stage
from rlrecipes.text import SYMPTOMS

VOID = {"meta", "line", "polyline", "br", "input"}
OURS = (Path(report.__file__).parent / "answers.js").read_text(encoding="utf-8")
HOSTILE = '<script>alert("x")</script> | **bold** ![i](http://example.org/i.png)\nsecond line'


def interval(value: float, half: float = 0.02) -> dict[str, float]:
    return {"value": value, "low": value - half, "high": value + half}


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def close(run: Run, stage: str, **record: Any) -> None:
    common = {
        "stage": stage,
        "metrics": {},
        "settings": {"ppo.learning_rate": 1e-05, "terms.chrf": 0.3, "terms.learned": 1.0},
        "seed": 0,
        "data": {"source": "built-in", "kept": {"prompts": 640}, "dropped": {"no target": 3}, "fingerprint": "abc"},
        "versions": {"trl": "1.12.0"},
        "git_commit": "0123abc",
        "finished": "2025-01-01T00:00:00Z",
        "seconds": 65.0,
        "peak_memory_mb": 1234,
    }
    run.stage(stage).mkdir(parents=True, exist_ok=True)
    (run.stage(stage) / "done.json").write_text(json.dumps(common | record), encoding="utf-8")


def update(step: int, kl: float | None = None, ended: float = 0.97) -> dict[str, float]:
    return {
        "step": step,
        "objective/scores": math.log(1 + step) / 2 + 0.1 * math.sin(9 * step),
        "terms/chrf": 0.3 + 0.004 * step,
        "terms/learned": 0.02 * step,
        "objective/kl": 0.1 * step if kl is None else kl,
        "kl_coef": 0.05,
        "answers/length": 12 + math.sin(step),
        "answers/ended": ended,
        "policy/entropy_avg": 2 - step / 100,
        "val/ratio": 1 + 1e-4 * math.sin(step),
        "policy/clipfrac_avg": 0.01 + 0.005 * math.cos(step),
    }


def sample(i: int, gain: float, answer: str = "孩子在读书。") -> dict[str, Any]:
    policies = {
        "base": {"answer": "", "headline": 0.1, "reward": -1.0},
        "sft": {"answer": f"sft answer {i}", "headline": 0.5, "reward": 0.0},
        "ppo": {"answer": answer, "headline": 0.5 + gain, "reward": gain * 3},
    }
    return {
        "prompt": [{"role": "user", "content": f"question {i}"}],
        "references": ["孩子在读书。"],
        "policies": policies,
    }


def fake_run(
    root: Path,
    recipe: str = "translation",
    *,
    gain: dict[str, float] | None = None,
    reward_gain: dict[str, float] | None = None,
    updates: list[dict[str, float]] | None = None,
    samples: list[dict[str, Any]] | None = None,
    stopped: str | None = None,
    learned: bool = True,
    base: float = 0.112,
    best4: float | None = None,
    accuracy: dict[str, float] | None = None,
) -> Run:
    """A run whose four stages are finished; the defaults are those of a healthy one."""
    run = Run("tiny", recipe, root)
    steps = range(10, 210, 10)
    close(run, "sft", metrics={"train_loss": 1.2}, too_long=2)
    write_lines(run.stage("sft") / "log.jsonl", [{"step": s, "loss": 3 / s**0.5, "lr": 1e-3} for s in steps])
    if learned:
        metrics = {"accuracy": accuracy or interval(0.843), "longer_wins": interval(0.55), "ceiling": 0.9}
        close(run, "reward", metrics=metrics | {"accuracy_without_noise": interval(0.93), "held_out_comparisons": 200})
        rows = [{"step": s, "loss": 0.7 - s / 500, "accuracy": 0.5 + s / 600} for s in steps]
        write_lines(run.stage("reward") / "log.jsonl", rows)
    close(run, "ppo", stopped=stopped)
    write_lines(run.stage("ppo") / "log.jsonl", [update(s) for s in range(1, 101)] if updates is None else updates)
    sampled = [{"step": s, "prompt": f"Say {i}", "answer": f"answer {s // 40}"} for s in (1, 21, 41) for i in (1, 2)]
    write_lines(run.stage("ppo") / "samples.jsonl", sampled)
    pair = {
        "gain": gain or interval(0.31, 0.03),
        "win_rate": interval(0.8),
        "reward_gain": reward_gain or interval(1.2),
        "reward_win_rate": interval(0.9),
    }
    values = {"base": base, "sft": 0.423, "ppo": 0.733} | ({"best4": best4} if best4 else {})
    close(
        run,
        "evaluate",
        metrics={
            p: {"chrf": interval(v), "bleu": interval(40 * v, 2), "reward": interval(v)} for p, v in values.items()
        },
        headline="chrf",
        comparisons={"sft_over_base": pair, "ppo_over_sft": pair},
        examples=300,
    )
    gains = [0.4, 0.3, 0.2, 0.1, 0.0, 0.0, 0.0, -0.1, -0.2, -0.3, -0.4]
    samples = [sample(i, g) for i, g in enumerate(gains)] if samples is None else samples
    write_lines(run.stage("evaluate") / "samples.jsonl", samples)
    return run


def page_of(run: Run, name: str = "index.html") -> str:
    return (report.combine([run]).parent / name).read_text(encoding="utf-8")


class Page(HTMLParser):
    """Checks that every element is closed in order, and gathers what a reader sees."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.scripts: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["script"]:
            self.scripts.append(data)
        elif self.open[-1:] != ["style"]:
            self.text += data


def test_the_page_opens_with_the_verdict(tmp_path: Path) -> None:
    page = page_of(fake_run(tmp_path))
    assert "PPO is better than SFT: chrf +0.310 [0.280, 0.340], on 300 held-out prompts." in page
    assert "Look at this first" not in page


def test_a_damaged_log_is_told(tmp_path: Path) -> None:
    run = fake_run(tmp_path)
    with (run.stage("evaluate") / "samples.jsonl").open("a") as file:
        file.write("{")
    with pytest.raises(UserError, match=r"samples\.jsonl is damaged"):
        page_of(run)


def test_a_healthy_run_has_no_warning(tmp_path: Path) -> None:
    assert "Look at this first" not in Page(page_of(fake_run(tmp_path))).text


@pytest.mark.parametrize(
    ("unhealthy", "warning"),
    [
        ({"gain": interval(-0.2)}, "Reward hacking: the reward went up (+1.200 [1.180, 1.220]) while chrf went down"),
        ({"gain": interval(0.0)}, "chrf did not follow"),
        ({"stopped": "KL per answer was 51.0"}, "PPO was stopped before its end: KL per answer was 51.0"),
        ({"updates": [update(s, kl=-1.0) for s in range(1, 9)]}, "The KL estimate was negative in 8 updates"),
        ({"updates": [update(1), update(2, kl=31.0), update(3)]}, "The KL reached 31.0 nats per answer in update 2"),
        ({"accuracy": interval(0.51)}, "The reward model is not shown to beat guessing: held-out accuracy 0.510"),
        ({"updates": [update(s, ended=0.5) for s in range(1, 9)]}, "only 50% of the answers ended by themselves"),
    ],
)
def test_an_unhealthy_run_is_called_so(tmp_path: Path, unhealthy: dict[str, Any], warning: str) -> None:
    run = fake_run(tmp_path, **unhealthy)
    assert warning in Page(page_of(run)).text
    records, logs = finished_records(run), {"ppo": json_lines(run.stage("ppo") / "log.jsonl")}
    said = [*warnings(records, logs), *hacking(records, logs, [])]
    assert all(sentence.endswith(f"in {SYMPTOMS}).") for sentence in said)


def test_a_policy_below_the_untrained_base_is_called_so_even_if_it_beats_sft(tmp_path: Path) -> None:
    text = Page(page_of(fake_run(tmp_path, base=0.8))).text
    assert "PPO is better than SFT" in text
    assert "PPO stays below the untrained base model: 0.733 [0.713, 0.753] against 0.800 [0.780, 0.820] (see" in text


def test_a_policy_below_the_best_of_four_is_called_so_unless_the_intervals_meet(tmp_path: Path) -> None:
    text = Page(page_of(fake_run(tmp_path, best4=0.8))).text
    assert "PPO stays below the best of 4 answers of SFT by the reward: 0.733 [0.713, 0.753] against 0.800" in text
    assert "Look at this first" not in page_of(fake_run(tmp_path, best4=0.76))


def test_negative_kl_in_a_few_updates_is_no_warning(tmp_path: Path) -> None:
    rows = [update(s, kl=-1.0 if s < 4 else 1.0) for s in range(1, 20)]
    assert "negative" not in page_of(fake_run(tmp_path, updates=rows))


def test_text_of_models_is_shown_as_text_and_never_as_markup(tmp_path: Path) -> None:
    run = fake_run(tmp_path, samples=[sample(0, 0.1, HOSTILE)])
    page = Page(page_of(run))
    assert HOSTILE in page.text
    assert page.scripts == [OURS]


def test_the_security_policy_lets_our_script_run_and_no_other(tmp_path: Path) -> None:
    page = Page(page_of(fake_run(tmp_path)))
    digest = base64.b64encode(hashlib.sha256(page.scripts[0].encode()).digest()).decode()
    policy = next(attrs["content"] for tag, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    assert "script-src" not in page_of(fake_run(tmp_path, samples=[]))


def test_the_page_loads_nothing_from_anywhere(tmp_path: Path) -> None:
    page = Page(page_of(fake_run(tmp_path)))
    assert {"link", "img", "iframe", "object"}.isdisjoint(tag for tag, _ in page.tags)
    assert page.scripts == [OURS]
    assert not re.findall("fetch|import|XMLHttp|http", OURS)
    assert not [attrs for _, attrs in page.tags if {"src", "xlink:href"} & set(attrs)]
    assert all(str(attrs["href"]).startswith("#") for _, attrs in page.tags if "href" in attrs)
    assert "url(" not in page_of(fake_run(tmp_path))


def test_every_plot_and_table_can_be_read_without_seeing_it(tmp_path: Path) -> None:
    tags = Page(page_of(fake_run(tmp_path))).tags
    plots = [attrs for tag, attrs in tags if tag == "svg"]
    assert len(plots) == 15
    assert all(attrs["role"] == "img" and attrs["aria-label"] for attrs in plots)
    assert all(attrs.get("scope") in ("col", "row") for tag, attrs in tags if tag == "th")
    assert sum(tag == "caption" for tag, _ in tags) == sum(tag == "table" for tag, _ in tags)


def test_chinese_text_stands_as_it_is(tmp_path: Path) -> None:
    assert "孩子在读书。" in page_of(fake_run(tmp_path))


def test_samples_are_the_largest_gains_the_middle_and_the_largest_losses(tmp_path: Path) -> None:
    text = Page(page_of(fake_run(tmp_path))).text.partition("All held-out answers")[0]
    assert "higher than SFT on 4 of 11 prompts, the same on 3, lower on 4" in text
    shown = [int(number) for number in re.findall(r"question (\d+)", text)]
    assert shown == [0, 1, 2, 4, 5, 6, 10, 9, 8]


def test_a_sample_is_shown_once_and_no_loss_is_made_up(tmp_path: Path) -> None:
    text = Page(page_of(fake_run(tmp_path, samples=[sample(0, 0.2), sample(1, 0.0)]))).text
    text = text.partition("All held-out answers")[0]
    assert re.findall(r"question (\d+)", text) == ["0", "1"]
    assert "Where PPO lost most" not in text


def test_training_answers_that_stay_the_same_are_told_once(tmp_path: Path) -> None:
    page = page_of(fake_run(tmp_path))
    assert page.count('<th scope="row">1–21</th><td>answer 0</td>') == 2
    assert page.count('<th scope="row">41</th><td>answer 1</td>') == 2


def test_without_a_learned_reward_there_is_no_section_about_its_model(tmp_path: Path) -> None:
    run = fake_run(tmp_path, learned=False)
    assert "reward model" not in Page(page_of(run)).text.lower()
    assert "0.843" not in report.short_table([run])


def test_a_run_of_sft_alone_still_has_a_page(tmp_path: Path) -> None:
    run = Run("tiny", "translation", tmp_path)
    close(run, "sft", metrics={"train_loss": 1.2})
    text = Page(page_of(run)).text
    assert "PPO has not been compared with SFT." in text
    assert "Samples" not in text


def test_infinite_and_missing_values_of_a_log_are_left_out_of_the_curves(tmp_path: Path) -> None:
    rows = [update(s) for s in range(1, 6)]
    rows[2]["objective/scores"] = math.nan
    del rows[3]["objective/scores"]
    page = page_of(fake_run(tmp_path, updates=rows))
    assert "Reward, weighted sum" in page
    assert "nan" not in "".join(re.findall(r'points="[^"]*"', page))


def test_a_constant_curve_can_be_drawn(tmp_path: Path) -> None:
    assert "KL weight, per token: from 0.05 to 0.05" in page_of(fake_run(tmp_path))


def test_the_stage_writes_the_page_into_its_folder_and_keeps_the_notes(tmp_path: Path) -> None:
    run = fake_run(tmp_path)
    job = SimpleNamespace(recipe=SimpleNamespace(name="translation"), run=run, data=SimpleNamespace(notes=["a note"]))
    record = stage.run(cast(Job, job), "builtin", tmp_path, cast(Any, None))
    assert record["notes"] == ["a note"]
    assert "a note" in (tmp_path / record["page"]).read_text(encoding="utf-8")
    close(run, "report", **record)
    assert "a note" in page_of(run)


def test_the_page_over_several_recipes_starts_with_their_headline_numbers(tmp_path: Path) -> None:
    runs = [fake_run(tmp_path), fake_run(tmp_path, "dialogue", gain=interval(-0.2))]
    page = report.combine(runs)
    assert page == tmp_path / "tiny" / "report" / "index.html"
    assert sorted(path.name for path in page.parent.iterdir()) == ["index.html"]
    text = Page(page.read_text(encoding="utf-8")).text
    assert text.index("All recipes") < text.index("PPO is better") < text.index("PPO is worse")
    assert "0.843 [of 0.900]" in text


def test_the_terminal_table_fits_a_hundred_columns(tmp_path: Path) -> None:
    worse = fake_run(tmp_path, "a_recipe_with_a_very_long_name_indeed", gain=interval(-0.2))
    record = worse.need("evaluate")
    record["metrics"] = {policy: {"a_long_headline": interval(1.0)} for policy in ("base", "sft", "ppo")}
    close(worse, **record | {"headline": "a_long_headline", "seconds": 2900})
    lines = report.short_table([fake_run(tmp_path, "question_answering"), worse]).splitlines()
    assert max(map(len, lines)) <= 100
    assert lines[2].split()[:5] == ["question_answering", "chrf", "0.112", "0.423", "0.733"]
    assert "+0.310 [0.280, 0.340]" in lines[2]
    assert lines[3].startswith("a_recipe_with_a_v…  a_long_hea…")
    assert lines[3].endswith("52 min")
