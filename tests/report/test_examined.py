"""The page on a reward model: what it says of any examination, and that it is safe to open."""

import math

import pytest

from rlrecipes.errors import UserError
from rlrecipes.report.examination import examination_verdict, findings, read_examination, terminal_table
from rlrecipes.report.figures import scores_of
from rlrecipes.report.page import write_examination
from rlrecipes.run.folder import Run

HOSTILE = '<script>alert("x")</script> ![i](http://example.org/i.png)'


def estimate(value, half=0.02):
    return {"value": value, "low": value - half, "high": value + half}


def counted(value, count=100):
    return estimate(value) | {"count": count}


def found(**more):
    """What an examination of comparisons with hostile texts finds."""
    rows = {"comparisons": 100, "ratings": 0, "too_long": 3}
    edit = {"edit": HOSTILE, "example": [HOSTILE, HOSTILE], "falls": estimate(0.5), "count": 9}
    pieces = [[HOSTILE, 0.5], [" child", -0.25], ["\n", 0.0]]
    reading = {
        "rows": [
            {
                "prompt": HOSTILE,
                "answers": {
                    "better": {"pieces": pieces, "score": 0.25, "gap": 0.01},
                    "worse": {"pieces": [], "score": 0.1, "gap": 0.4},
                },
            }
        ],
        "words": [{"word": HOSTILE, "part": estimate(0.5), "count": 5}],
        "read": 8,
        "refused_gaps": 1,
        "largest_gap": 0.4,
    }
    return {
        **{"run": "r", "recipe": "translation", "model": HOSTILE, "made": None, "data": HOSTILE, "notes": [HOSTILE]},
        "rows": rows,
        "accuracy": {"overall": counted(0.9), "parts": {HOSTILE: {HOSTILE: counted(0.8)}}},
        "baselines": {"has '<b>'": estimate(0.6)},
        "calibration": {
            "ece": 0.05,
            "brier": estimate(0.1),
            "bins": [{"chance": 0.6, "accuracy": estimate(0.7), "count": 3}],
            "count": 100,
        },
        "truth": {"headline": "chrf", "all": counted(0.4), "ppo": counted(math.nan)},
        "answers": {"silence": {"mean": estimate(-1), "wins": estimate(0.0), "count": 3, "scores": [-1.0, -0.5, -1.5]}},
        "edits": [edit | {"harmful": harmful, "change": estimate(-0.5)} for harmful in (False, True)],
        "reading": reading,
        **more,
    }


def page_of(values, folder):
    write_examination(values, folder)
    return (folder / "index.html").read_text(encoding="utf-8")


def test_texts_of_others_stay_texts(tmp_path):
    page = page_of(found(), tmp_path)
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "<img" not in page
    assert "<b>'" not in page


def test_an_answer_whose_pieces_do_not_add_up_is_told_and_not_coloured(tmp_path):
    page = page_of(found(), tmp_path)
    assert page.count('<span class="piece') == 3
    assert "not shown: the pieces miss 0.400 of the score, more than a tenth" in page
    assert "1 answers are left out, since their pieces miss more than a tenth." in page


def test_a_model_that_cannot_be_read_keeps_the_rest_of_the_page(tmp_path):
    page = page_of(found(reading={"refused": "this model cannot be read by gradients"}), tmp_path)
    assert "Nothing is shown: this model cannot be read by gradients." in page
    assert "What an edit does to the score" in page


def test_the_verdict_is_green_only_above_what_a_cheap_feature_reaches():
    assert examination_verdict(found()).tone == "better"
    near = found(baselines={"more words": estimate(0.87)})
    assert examination_verdict(near).tone == "open"
    assert "one cheap feature alone (“more words”) reaches 0.870 [0.850, 0.890]" in examination_verdict(near).sentence


def test_an_examination_of_another_model_is_not_this_runs(tmp_path):
    run = Run("r", "translation", tmp_path)
    assert read_examination(run, {}) is None
    path = run.folder / "examine" / "examine.json"
    path.parent.mkdir(parents=True)
    path.write_text('{"made": "monday"}')
    assert read_examination(run, {"finished": "monday"}) == {"made": "monday"}
    assert read_examination(run, {"finished": "tuesday"}) is None
    path.write_text("{")
    with pytest.raises(UserError, match=r"examine\.json is damaged; delete it, or make it again with `"):
        read_examination(run, {})


def test_no_number_is_printed_where_there_is_none():
    assert "nan" not in terminal_table(found(truth={"headline": "chrf", "all": counted(math.nan)})).lower()


def test_a_figure_takes_the_pages_colours_and_refers_to_nothing_outside():
    drawing = scores_of({"silence": [0.0, 1.0], "better answers": [1.0, 2.0, 3.0]})
    assert drawing.startswith("<svg")
    assert "var(--accent)" in drawing
    assert "#00000" not in drawing
    assert "http" not in drawing
    assert "better answers" in drawing, "words are text, which a screen reader finds"
    assert drawing == scores_of({"silence": [0.0, 1.0], "better answers": [1.0, 2.0, 3.0]})


def edit_between(harmful, low, high):
    change = {"value": (low + high) / 2, "low": low, "high": high}
    return {"edit": "lower case", "harmful": harmful, "change": change, "count": 9}


def test_only_changes_that_are_large_and_shown_are_findings():
    told = [
        findings({"edits": [edit_between(*row)]}) for row in [(False, 0.3, 0.5), (False, -0.5, -0.3), (True, -0.3, 0.1)]
    ]
    assert [sentence.split("“")[0] for (sentence,) in told] == [
        "It raises the score for ",
        "It lowers the score for ",
        "It hardly sees ",
    ]
    assert findings({"edits": [edit_between(False, -0.1, 0.9), edit_between(True, -0.9, -0.5)]}) == []
    silence = {"wins": {"value": 0.5, "low": 0.4, "high": 0.6}}
    assert findings({"answers": {"silence": silence}}) == [
        "Against the prompt’s own answer, silence wins 0.500 [0.400, 0.600] of the time."
    ]
