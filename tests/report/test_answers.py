"""The list of all held-out answers: what it holds, and how it and the whole page behave in a browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from report.test_page import fake_run, page_of, sample

from rlrecipes.report.answers import CUTS, MOST, all_answers
from rlrecipes.report.records import last_pair

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed to look at the page with")
FRAME = """<!doctype html><iframe src="index.html" width="{width}" height="900"></iframe><pre></pre><script>
addEventListener("load", () => {{
  const page = document.querySelector("iframe").contentDocument, form = page.querySelector(".all form");
  page.querySelectorAll("details").forEach((part) => part.open = true);
  const ask = (wanted) => {{
    for (const [name, value] of Object.entries(wanted)) form.elements[name].value = value;
    form.dispatchEvent(new Event("input"));
    const seen = [...page.querySelectorAll(".case")].filter((node) => !node.hidden);
    const given = seen.map((node) => node.querySelectorAll("[data-policy]:not([hidden])").length);
    const places = seen.map((node) => Number(node.querySelector("dt").textContent));
    return [places, given, form.querySelector("output").textContent];
  }};
  const width = page.documentElement.scrollWidth - page.documentElement.clientWidth;
  const asked = {asked}.map(ask);
  document.querySelector("pre").textContent = JSON.stringify({{ over: width, hidden: form.hidden, asked }});
}});
</script>"""


def chromium(*arguments: str) -> subprocess.CompletedProcess[str]:
    quiet = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--enable-logging=stderr")
    return subprocess.run([str(BROWSER), *quiet, *arguments], capture_output=True, text=True, timeout=120, check=True)


def looked_at(page: Path, width: int, *asked: dict[str, str]) -> dict[str, Any]:
    """What a page `width` pixels wide shows after each of the form's settings; fails on an error in the console."""
    frame = page.with_name("frame.html")
    frame.write_text(FRAME.format(width=width, asked=json.dumps(asked)), encoding="utf-8")
    options = ("--allow-file-access-from-files", f"--user-data-dir={page.parent / 'browser'}", "--dump-dom")
    ended = chromium(*options, "--virtual-time-budget=5000", frame.as_uri())
    assert "CONSOLE" not in ended.stderr
    found: dict[str, Any] = json.loads(unescape(ended.stdout.partition("<pre>")[2].partition("</pre>")[0]))
    return found


def page_in(folder: Path) -> Path:
    gains = [0.4, 0.3, 0.2, 0.1, 0.0, 0.0, 0.0, -0.1, -0.2, -0.3, -0.4]
    answers = ["x" * 500, *["孩子在读书。"] * 10]
    page_of(fake_run(folder, samples=[sample(i, g, a) for i, (g, a) in enumerate(zip(gains, answers, strict=True))]))
    return folder / "tiny" / "report" / "index.html"


def test_every_held_out_answer_is_on_the_page_of_its_run(tmp_path: Path) -> None:
    page = page_of(fake_run(tmp_path)).partition("All held-out answers")[2]
    assert [f"sft answer {i}</dd>" in page for i in range(11)] == [True] * 11
    assert page.count('<div data-policy="ppo"') == 11


def test_long_answers_are_cut_until_the_page_stays_below_3_mb_and_the_page_says_so(tmp_path: Path) -> None:
    rows = [sample(i, 0.1, "孩<" * 2000) for i in range(700)]
    page = page_of(fake_run(tmp_path, samples=rows))
    assert len(page.encode()) < 3_000_000
    assert f"the first {MOST} of 700" in page
    assert re.search(r"Texts are cut after \d+ characters; samples\.jsonl has them whole", page)


def test_short_answers_are_not_cut() -> None:
    found = all_answers([sample(0, 0.1, "x" * CUTS[0])], last_pair({}))
    assert found
    assert not found["was_cut"]
    assert found["cases"][0]["given"][2]["answer"] == "x" * CUTS[0]


@browser
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_fits_a_phone_and_a_screen(tmp_path: Path, width: int) -> None:
    assert looked_at(page_in(tmp_path), width)["over"] <= 0


@browser
def test_answers_are_filtered_and_ordered_in_the_browser(tmp_path: Path) -> None:
    found = looked_at(
        page_in(tmp_path),
        1280,
        {"outcome": "lower"},
        {"order": "gain", "policy": "ppo"},
        {"direction": "down", "outcome": "all", "order": "reward", "policy": ""},
        {"text": "SFT answer 3"},
        {"policy": "ppo"},
    )
    lost, by_gain, by_reward, said, unsaid = found["asked"]
    assert not found["hidden"]
    assert lost == [[8, 9, 10, 11], [3] * 4, "4 of 11 prompts"]
    assert by_gain[:2] == [[11, 10, 9, 8], [1] * 4]
    assert by_reward[0] == [*range(1, 12)]
    assert said[0] == [4]
    assert unsaid[0] == []


@browser
def test_the_page_prints(tmp_path: Path) -> None:
    page, sheet = page_in(tmp_path), tmp_path / "page.pdf"
    chromium(f"--user-data-dir={tmp_path / 'browser'}", f"--print-to-pdf={sheet}", page.as_uri())
    assert sheet.read_bytes().startswith(b"%PDF")
