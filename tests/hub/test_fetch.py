"""Rows of public sets are fetched once and kept: whole, pinned, and read without a network the second time."""

import dataclasses
import json
import re
from pathlib import Path

import datasets
import pytest
from hub_rows import ROWS, loaded, put_in_cache, set_of

from rlrecipes.data import hub_sets
from rlrecipes.data.load import load
from rlrecipes.errors import UserError
from rlrecipes.hub import fetch as hub_fetch
from rlrecipes.recipe import load_recipe


def test_rows_are_kept_so_that_the_second_time_needs_neither_network_nor_cache(cache, monkeypatch):
    first = loaded("dialogue", "hub", cache)
    monkeypatch.setattr(hub_fetch, "reach_data", lambda *arguments: pytest.fail("it looked for the set again"))
    second = load(load_recipe("dialogue"), "hub", {}, Path("runs"))
    assert second == dataclasses.replace(first, metrics=second.metrics)


def test_the_source_that_is_recorded_gives_the_same_rows_again(cache, monkeypatch):
    first = loaded("dialogue", "hub", cache)
    monkeypatch.setattr(hub_fetch, "reach_data", lambda *arguments: pytest.fail("it looked for the set again"))
    again = load(load_recipe("dialogue"), first.source, {}, Path("runs"))
    assert again.train.demonstrations == first.train.demonstrations
    assert again.source == first.source


def kept(pattern):
    (path,) = Path("runs/.hub").glob(pattern)
    return path


def cut_down(path):
    told = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({key: value for key, value in told.items() if key != "rows"}), encoding="utf-8")


@pytest.mark.parametrize(
    "damage",
    [
        lambda: kept("*-train-*.jsonl.gz").unlink(),
        lambda: kept("*-train-*.json").unlink(),
        lambda: kept("*-train-*.json").write_text("{"),
        lambda: cut_down(kept("*-train-*.json")),
    ],
)
def test_kept_rows_of_which_either_file_is_gone_or_damaged_are_fetched_anew(cache, damage):
    first = loaded("dialogue", "hub:nvidia/HelpSteer2", cache)
    damage()
    again = load(load_recipe("dialogue"), "hub:nvidia/HelpSteer2", {}, Path("runs"))
    assert again == dataclasses.replace(first, metrics=again.metrics)
    assert kept("*-train-*.jsonl.gz").is_file()


def test_a_flipped_bit_in_what_was_kept_is_told_or_fetched_anew_or_says_the_same(cache):
    first = loaded("dialogue", "hub:nvidia/HelpSteer2", cache)
    told = 0
    for pattern, bits in (("*-train-*.jsonl.gz", 12), ("*-train-*.json", 25)):
        whole = {path: path.read_bytes() for path in Path("runs/.hub").iterdir()}
        content = whole[kept(pattern)]
        for bit in range(0, len(content) * 8, len(content) * 8 // bits):
            kept(pattern).write_bytes(
                content[: bit // 8] + bytes([content[bit // 8] ^ 1 << bit % 8]) + content[bit // 8 + 1 :]
            )
            try:
                again = load(load_recipe("dialogue"), "hub:nvidia/HelpSteer2", {}, Path("runs"))
            except UserError as error:
                told += bool(re.search(r"is damaged \(it has been changed.*; delete .*json there and give", str(error)))
            else:
                assert again == dataclasses.replace(first, metrics=again.metrics), (pattern, bit)
            for path in set(Path("runs/.hub").iterdir()) | set(whole):
                path.write_bytes(whole[path]) if path in whole else path.unlink()
    assert told > 12


def test_another_revision_is_other_data(cache):
    loaded("dialogue", "hub:nvidia/HelpSteer2", cache)
    other = "f" * 40
    put_in_cache(cache, set_of("nvidia/HelpSteer2"), count=60, commit=other)
    newest = load(load_recipe("dialogue"), "hub:nvidia/HelpSteer2", {}, Path("runs"))
    pinned = load(load_recipe("dialogue"), f"hub:nvidia/HelpSteer2@{other}", {}, Path("runs"))
    assert len(newest.train.ratings) == 40, "what was kept stays"
    assert len(pinned.train.ratings) == 60
    assert pinned.hub[0]["revision"] == other


def test_a_fetch_that_breaks_off_leaves_nothing_half(cache, monkeypatch):
    put_in_cache(cache, set_of("nvidia/HelpSteer2"))
    whole = hub_fetch._select

    def broken(*arguments):
        rows = whole(*arguments)
        yield next(rows)
        raise ConnectionError("the line is gone")

    monkeypatch.setattr(hub_fetch, "_select", broken)
    with pytest.raises(UserError, match="cannot fetch nvidia/HelpSteer2, train: the line is gone"):
        load(load_recipe("dialogue"), "hub:nvidia/HelpSteer2", {}, Path("runs"))
    assert not Path("runs").exists() or not [path for path in Path("runs").rglob("*") if path.is_file()]


def test_a_set_whose_columns_changed_says_what_was_expected(cache, monkeypatch):
    monkeypatch.setitem(ROWS, "trl-lib/tldr", lambda i: {"prompt": f"Post {i}", "summary": "Short."})
    with pytest.raises(UserError, match="has the columns prompt, summary, but 'completion' was expected"):
        loaded("text_generation", "hub:trl-lib/tldr", cache)


def test_only_rows_that_are_wanted_are_taken_and_the_others_are_counted(cache):
    data = loaded("translation", "hub:RicardoRei/wmt-da-human-evaluation", cache)
    (told,) = data.hub
    assert (told["rows"], told["passed_over"]) == (20, 20)


def test_every_file_of_a_large_set_gives_its_share(cache, monkeypatch):
    few = dataclasses.replace(set_of("wmt/wmt14"), take=10)
    monkeypatch.setattr(hub_sets, "chosen_sets", lambda recipe, source: [few])
    put_in_cache(cache, few, count=20, files=3)
    data = load(load_recipe("translation"), "hub", {}, Path("runs"))
    numbers = sorted(int(example.answers[0].split()[2]) for example in data.train.demonstrations)
    assert numbers == [0, 1, 2, 3, 20, 21, 22, 40, 41, 42]


def test_a_set_of_which_no_row_is_wanted_is_told_and_leaves_nothing(cache, monkeypatch):
    rows = ROWS["RicardoRei/wmt-da-human-evaluation"]
    monkeypatch.setitem(ROWS, "RicardoRei/wmt-da-human-evaluation", lambda i: rows(i) | {"lp": "zh-en"})
    with pytest.raises(UserError, match=r"^RicardoRei/wmt-da-human-evaluation, train has no row that is wanted"):
        loaded("translation", "hub:RicardoRei/wmt-da-human-evaluation", cache)
    assert not [path for path in Path("runs").rglob("*") if path.is_file()]


def test_a_set_that_is_read_from_the_hub_itself_is_read_at_the_commit_that_is_recorded(cache, monkeypatch):
    snapshot = put_in_cache(cache, set_of("nvidia/HelpSteer2"))
    real, revisions = datasets.load_dataset, []

    def from_the_hub(place, *arguments, revision, **options):
        revisions.append((place, revision))
        return real(str(snapshot), *arguments, **options)

    monkeypatch.setattr(datasets, "load_dataset", from_the_hub)
    monkeypatch.setattr(hub_fetch, "reach_data", lambda id, revision: (id, "abc"))
    data = load(load_recipe("dialogue"), "hub:nvidia/HelpSteer2", {}, Path("runs"))
    assert revisions == [("nvidia/HelpSteer2", "abc")] * 2
    assert data.hub[0]["revision"] == "abc"
