"""A recipe that a person writes: what it may leave out, and how one that does not work is told without harm to the others."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, SMALLEST, main, smallest, write_rows

import recipes
from rlrecipes.errors import UserError
from rlrecipes.model import embedded
from rlrecipes.recipe import Comparison, Rating, load_recipe, recipe_names

OTHERS = recipe_names()
LIGHT = """
from rlrecipes import metrics
from rlrecipes.recipe import Columns, Comparison, Data, Evaluation, Example, Recipe, Reward, Term, user

def read(row):
    return Example(user(row["ask"]), (row["say"],))

def brief(prompt, answer, example):
    return 1 / (1 + len(answer))

RECIPE = Recipe(
    name="fifth",
    summary="a task of one's own",
    columns=Columns(("ask", "say"), read),
    reward=Reward(terms=(Term("brief", brief, 0.5),)),
    evaluation=Evaluation((metrics.mean_of("f1", metrics.f1),)),
)
"""
"""All that a recipe has to say."""
METRIC = 'metrics.mean_of("f1", metrics.f1),'
COMPARED = LIGHT.replace(
    "    reward=",
    "    compare=lambda example, *rest: Comparison(example.prompt, example.answers[0], 'No'),\n    reward=",
)
"""And what it needs where data bring no preferences."""
ROWS = [{"ask": f"Say {i}", "say": f"It is {i}"} for i in range(60)]
PAIRS = [{"prompt": f"Say {i}", "chosen": f"It is {i}", "rejected": "No"} for i in range(60)]


@pytest.fixture
def fifth(tmp_path, monkeypatch):
    """Writes `recipes/fifth/recipe.py` in the working directory; the project's own recipes are there too."""
    folder = tmp_path / "recipes"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "rows.jsonl", ROWS)
    write_rows(tmp_path / "pairs.jsonl", PAIRS)

    def write(code):
        (folder / "fifth").mkdir()
        (folder / "fifth" / "recipe.py").write_text(code, encoding="utf-8")
        importlib.invalidate_caches()

    yield write
    for name in [name for name in sys.modules if name.startswith("recipes.fifth")]:
        del sys.modules[name]
    vars(recipes).pop("fifth", None)


@pytest.fixture
def said(capsys):
    """Runs a command and returns what it prints; `refused` when it must fail, in one sentence and before it trains."""

    def run(*arguments, refused=False):
        status = main(arguments)
        out, err = capsys.readouterr()
        assert status == (2 if refused else 0), err
        assert not refused or (err.startswith("error: ") and err.count("\n") == 1)
        return err if refused else out

    return run


# One that does not work.


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        (
            "\nimport nothing_like_it",
            "cannot be imported: ModuleNotFoundError: No module named 'nothing_like_it' (recipe.py, line 2)",
        ),
        ("RECIPE = (", "cannot be imported: SyntaxError: '(' was never closed (recipe.py, line 1)"),
        (LIGHT.replace("    evaluation=", "    # "), "missing 1 required positional argument: 'evaluation'"),
        ("raise ValueError('two\\nlines')", "cannot be imported: ValueError: two (recipe.py, line 1)"),
        ("import sys\nsys.exit(0)", "cannot be imported: SystemExit: 0 (recipe.py, line 2); mend it"),
        ("raise GeneratorExit('no Exception')", "cannot be imported: GeneratorExit: no Exception (recipe.py, line 1)"),
        ("recipe = 1", "has no RECIPE"),
        ("RECIPE = 1", "has no RECIPE"),
        (
            LIGHT.replace(METRIC, METRIC * 2),
            "recipe.py (recipe.py, line 16): two metrics are named 'f1'; give one of them",
        ),
        (LIGHT.replace(METRIC, METRIC.replace('"f1"', '"reward"')), "named 'reward', as evaluation's own is; give it"),
        (LIGHT.replace(METRIC, METRIC + METRIC.replace('"f1"', '"f1_sampled"')), "a metric is named 'f1_sampled'"),
        (
            LIGHT.replace(METRIC, METRIC[:-1]),
            "Evaluation.metrics must be a tuple of Metrics, and a Metric stands there; write",
        ),
        (
            LIGHT.replace("0.5),)", "0.5))"),
            "Reward.terms must be a tuple of Terms, and a Term stands there; write (one,)",
        ),
        (LIGHT.replace('Term("brief"', "Term(None"), "a Term is named None; name it by a text"),
        (LIGHT.replace('"fifth"', '"another"'), "names its recipe 'another'; give it the name of its folder, 'fifth'"),
    ],
)
def test_a_recipe_that_does_not_work_is_told_in_one_line_and_the_others_work(fifth, said, code, sentence):
    fifth(code)
    lines = said("list").splitlines()
    (line,) = [line for line in lines if line.startswith("fifth ")]
    assert "recipes/fifth/recipe.py" in line
    assert sentence in line
    assert {line.split()[0] for line in lines if line} == {*OTHERS, "fifth", "profiles:"}
    for command in ("show", "run", "sft", "plan", "chat"):
        assert sentence in said(command, "fifth", refused=True)
    assert sentence in said("reward", "translation+fifth", refused=True)
    assert "what SFT imitates" in said("show", "translation")
    assert embedded.sources("translation") == OTHERS


def test_an_interrupt_that_a_recipe_raises_itself_ends_as_ctrl_c_does(fifth, capsys):
    fifth("raise KeyboardInterrupt")
    assert main(["show", "fifth"]) == 75
    assert capsys.readouterr().err == "\ninterrupted; give the same command again to go on\n"


@pytest.fixture
def demonstrated(monkeypatch):
    """The recipes that `demo` would have run."""
    names = []
    monkeypatch.setattr("rlrecipes.__main__.run_stages", lambda job, *rest: names.append(job.recipe.name))
    monkeypatch.setattr("rlrecipes.report.page.combine", lambda runs: "page")
    monkeypatch.setattr("rlrecipes.report.page.short_table", lambda runs: "table")
    return names


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        (LIGHT, "left out: fifth has no built-in data"),
        ("1 / 0", "left out: recipes/fifth/recipe.py cannot be imported"),
    ],
)
def test_the_demo_leaves_out_aloud_what_has_no_world_or_does_not_work(fifth, said, demonstrated, code, sentence):
    fifth(code)
    assert sentence in said("demo")
    assert demonstrated == OTHERS


def test_a_demo_of_nothing_is_refused(fifth, monkeypatch, capsys):
    fifth(LIGHT)
    monkeypatch.setattr("rlrecipes.__main__.recipe_names", lambda: ["fifth"])
    assert main(["demo"]) == 2
    assert "error: no recipe has built-in data" in capsys.readouterr().err


# Where it stands.


def test_a_recipe_in_the_working_directory_hides_the_packages(tmp_path):
    for name in ("translation", "dialogue"):
        (tmp_path / "recipes" / name).mkdir(parents=True)
    mine, other = (tmp_path / "recipes" / name / "recipe.py" for name in ("translation", "dialogue"))
    mine.write_text(LIGHT.replace("fifth", "translation"), encoding="utf-8")
    mine.with_name("__init__.py").touch()
    code = "from recipes.translation.recipe import RECIPE as mine\n"
    other.write_text(code + LIGHT.replace("fifth", "dialogue"), encoding="utf-8")  # and it has no __init__.py

    def told(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "rlrecipes", *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )

    listed = told("list").stdout.splitlines()
    assert sorted(line.split()[0] for line in listed if line) == sorted([*OTHERS, "profiles:"])
    assert "a task of one's own" in next(line for line in listed if line.startswith("translation "))
    error = told("show", "dialogue").stderr
    assert error.startswith(f"error: {other} is hidden by {ROOT / 'recipes' / 'dialogue' / 'recipe.py'}; put an empty")


# One without a world.


def test_without_data_a_recipe_without_a_world_says_what_to_bring(fifth, said):
    fifth(LIGHT)
    for arguments in (["run", "fifth"], ["show", "fifth"], ["show", "fifth", "--data", "built-in"]):
        sentence = said(*arguments, refused=True)
        assert "fifth has no built-in data; bring your own as --data <file> with the columns ask, say" in sentence
        assert "a base model as --model" in sentence


def test_with_data_it_is_shown_and_told_that_the_embedded_base_knows_nothing_of_it(fifth, said, checkpoint):
    fifth(COMPARED)
    note = "the embedded base has read no texts of this task"
    out = said("show", "fifth", "--data", "rows.jsonl")
    assert "comparisons (4" in out
    assert "the recipe makes the rejected answers (4" in out
    assert note in out
    assert note not in said("show", "fifth", "--data", "rows.jsonl", "--model", str(checkpoint.model))
    assert note not in said("show", "translation")


def test_without_documents_it_stands_on_the_base_that_the_others_share(fifth):
    fifth(LIGHT)
    assert embedded.sources("fifth") == embedded.sources("translation") == OTHERS


def test_where_no_recipe_has_documents_there_is_no_base(fifth, monkeypatch, capsys):
    fifth(COMPARED)
    monkeypatch.setattr(embedded, "SHARING", ())
    assert main(["sft", "fifth", "--data", "rows.jsonl", *SMALLEST]) == 2
    assert "the embedded base cannot be trained: no recipe has documents" in capsys.readouterr().err


def test_a_base_that_was_made_serves_while_a_recipe_that_it_has_read_is_broken(fifth, monkeypatch, capsys):
    fifth(
        LIGHT.replace(
            "    reward=", "    documents=lambda: [read({'ask': 'Say 1', 'say': 'It is 1'})] * 9,\n    reward="
        )
    )
    assert load_recipe("fifth").documents
    monkeypatch.setattr(embedded, "SHARING", ("fifth",))
    data = ("--data", "pairs.jsonl", *SMALLEST)
    assert main(["sft", "translation", "--run", "before", *data]) == 0
    (made,) = bases()
    del sys.modules["recipes.fifth.recipe"]
    Path("recipes/fifth/recipe.py").write_text("1 / 0  # as while it is written", encoding="utf-8")
    assert main(["sft", "translation", "--run", "after", *data]) == 0
    assert bases() == [made]
    capsys.readouterr()
    assert main(["sft", "translation", "--run", "other", *data, "base.max_steps=2"]) == 2
    assert "cannot be trained: recipes/fifth/recipe.py cannot be imported: ZeroDivisionError" in capsys.readouterr().err


def bases():
    return sorted(Path("runs", embedded.FOLDER).glob("[!.]*/"))


# What its data and its metrics must bring.


def test_without_preferences_and_without_a_way_to_make_them_it_is_refused(fifth, said):
    fifth(LIGHT)
    sentence = said("run", "fifth", "--data", "rows.jsonl", refused=True)
    assert "the reward model of fifth learns from preferences, but rows.jsonl brings none" in sentence
    assert "terms.learned=0" in sentence
    assert "comparisons (4" in said("show", "fifth", "--data", "pairs.jsonl")


def test_a_reward_of_terms_alone_needs_no_preferences(fifth, checkpoint):
    fifth(LIGHT.replace("Reward(", "Reward(learned=0, "))
    settings = smallest(["--model", "terms.learned=0"])
    assert main(["run", "fifth", "--data", "rows.jsonl", "--model", str(checkpoint.model), *settings]) == 0
    stages = {path.name for path in Path("runs/own/fifth").iterdir()}
    assert {"sft", "ppo", "evaluate", "report"} <= stages
    assert "reward" not in stages


@pytest.mark.parametrize(
    ("metrics", "sentence"),
    [
        ("metrics.distinct(2),", "the headline of fifth is 'distinct_2', which cannot score answers one by one"),
        (
            "metrics.mean_of('facts', None, needs='facts'),",
            "no metric of fifth applies: rows.jsonl lacks 'facts' for facts",
        ),
        ("", "no metric of fifth applies: it has none at all"),
    ],
)
def test_a_headline_that_could_not_be_measured_is_refused_before_anything_is_trained(fifth, said, metrics, sentence):
    fifth(COMPARED.replace('metrics.mean_of("f1", metrics.f1),', metrics))
    for command in ("run", "sft", "show"):
        assert sentence in said(command, "fifth", "--data", "rows.jsonl", refused=True)


def test_a_row_that_the_recipes_reader_cannot_read_is_left_out_with_its_reason(fifth, said, tmp_path):
    fifth(COMPARED)
    write_rows(tmp_path / "odd.jsonl", [*ROWS, {"ask": "Say it", "say": 5}, {"ask": ["Say"], "say": "It"}])
    assert "2 rows left out: a value is no text" in said("show", "fifth", "--data", "odd.jsonl")


def test_a_reader_that_fails_on_every_row_is_told_with_its_error(fifth, said):
    fifth(COMPARED.replace('row["say"]', 'row["sya"]'))
    assert "reader raised KeyError: no 'sya'" in said("show", "fifth", "--data", "rows.jsonl", refused=True)


@pytest.mark.parametrize(
    ("made", "sentence"),
    [
        (
            'user(row["ask"]), (row["say"])',
            "the answers of an Example must be a tuple of texts, and a str stands there",
        ),
        ('user(row["ask"]), [row["say"]]', "must be a tuple of texts, and a list stands there; write (text,) with its"),
        ('row["ask"], (row["say"],)', "a prompt must be a tuple of Messages, and a str stands there; write user(text)"),
        ('user(row["ask"])[0], (row["say"],)', "a prompt must be a tuple of Messages, and a Message stands there"),
        ('({"role": "user"},), (row["say"],)', "a prompt must be a tuple of Messages, and a dict stands there"),
        ('(None,), (row["say"],)', "a prompt must be a tuple of Messages, and a NoneType stands there"),
        ('user(row["ask"]), (row["say"],), [1]', "the truth of an Example must be a dict, and a list stands there"),
    ],
)
def test_an_example_of_other_parts_is_refused_before_its_letters_are_learnt(fifth, said, made, sentence):
    fifth(COMPARED.replace('user(row["ask"]), (row["say"],)', made))
    refusal = said("run", "fifth", "--data", "rows.jsonl", refused=True)
    assert sentence in refusal
    assert "It is" not in refusal


@pytest.mark.parametrize("kind", [lambda prompt: Comparison(prompt, "a", "b"), lambda prompt: Rating(prompt, "a", 1)])
def test_a_comparison_and_a_rating_take_no_text_as_their_prompt_either(kind):
    with pytest.raises(UserError, match="a prompt must be a tuple of Messages, and a str stands there"):
        kind("Say it.")


# What its own functions make.


MADE = "lambda example, *rest: Comparison(example.prompt, example.answers[0], 'No')"


@pytest.mark.parametrize(
    ("compare", "reason"),
    [
        (MADE.replace("'No'", "example.answers[0]"), "chosen equals rejected"),
        (MADE.replace("'No'", "' '"), "empty answer"),
        (MADE.replace("'No'", "None"), "a value is no text"),
    ],
)
def test_made_comparisons_that_teach_nothing_are_left_out_with_their_reason(fifth, said, compare, reason):
    some = f"(lambda make: lambda one, *rest: (make if '7' in one.answers[0] else {MADE})(one))({compare})"
    fifth(COMPARED.replace(MADE, some))
    assert f"Made comparisons are left out: {reason} (" in said("show", "fifth", "--data", "rows.jsonl")


def test_where_all_made_comparisons_teach_nothing_the_reward_model_is_refused(fifth, said):
    fifth(COMPARED.replace("'No'", "example.answers[0]"))
    assert "brings none: no rejected answer" in said("show", "fifth", "--data", "rows.jsonl", refused=True)


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        (
            "compare=lambda example, *rest: example",
            "`compare` of fifth gave a value of type Example and no Comparison; mend it",
        ),
        (
            "compare=lambda example, *rest: (1, 2)",
            "`compare` of fifth gave a value of type tuple and no Comparison; mend it",
        ),
        ("compare=lambda *rest: {}['It is']", "`compare` of fifth raised KeyError (recipe.py, line 15); mend it"),
        ("judge=lambda rows: 3", "`judge` of fifth gave a value of type int and no Metric; mend it"),
        ("judge=lambda rows: {}['It is']", "`judge` of fifth raised KeyError (recipe.py, line 15); mend it"),
        ("caution=lambda rows: 3", "`caution` of fifth gave a value of type int and no str; mend it"),
        ("caution=lambda rows: exit()", "`caution` of fifth raised SystemExit ("),
    ],
)
def test_a_function_of_the_recipe_that_fails_is_named_with_its_line(fifth, said, function, sentence):
    fifth(LIGHT.replace("    reward=", f"    {function},\n    reward="))
    refusal = said("show", "fifth", "--data", "rows.jsonl", refused=True)
    assert sentence in refusal
    assert "It is" not in refusal


@pytest.mark.parametrize(
    ("documents", "sentence"),
    [
        ("exit", "`documents` of fifth raised SystemExit ("),
        ("lambda: 'It is 1'", "`documents` of fifth gave a value of type str and no Example; mend it"),
        ("lambda: (1, 2)", "`documents` of fifth gave a value of type int and no Example; mend it"),
    ],
)
def test_documents_that_cannot_be_made_are_told(fifth, documents, sentence):
    fifth(LIGHT.replace("    reward=", f"    documents={documents},\n    reward="))
    with pytest.raises(UserError) as error:
        embedded.documents("fifth")
    assert sentence in str(error.value)


def test_a_reader_that_ends_the_process_leaves_its_rows_out_with_the_reason(fifth, said):
    fifth(LIGHT.replace(", read),", ", lambda row: exit()),"))
    assert "row 1: the reader raised SystemExit" in said("show", "fifth", "--data", "rows.jsonl", refused=True)


@pytest.mark.parametrize(
    ("builtin", "said_of_it"),
    [("lambda: None", "gave a value of type NoneType and no Data"), ("lambda: 1 / 0", "raised ZeroDivi")],
)
def test_a_world_that_cannot_be_made_is_told(fifth, said, builtin, said_of_it):
    fifth(LIGHT.replace("    reward=", f"    builtin={builtin},\n    reward="))
    assert f"`builtin` of fifth {said_of_it}" in said("show", "fifth", refused=True)


def test_a_recipe_that_changes_the_working_directory_anywhere_leaves_the_data_where_they_are(fifth, said):
    moves = LIGHT.replace("    return ", "    os.chdir('/')\n    return ")
    moves = moves.replace("metrics.f1)", "lambda *_: os.chdir('/') or 1.0)")
    fifth("import os\nos.chdir('/')\n" + moves)
    before = os.getcwd()
    assert "brief: " in said("show", "fifth", "--data", "rows.jsonl", "terms.learned=0")
    assert os.getcwd() == before


def test_a_metric_that_raises_is_told_before_anything_is_trained(fifth, said):
    fifth(COMPARED.replace("metrics.f1)", "lambda answer, example: {}['key'])"))
    refusal = said("run", "fifth", "--data", "rows.jsonl", *SMALLEST, refused=True)
    assert "the metric 'f1' raised KeyError (no 'key')" in refusal
    assert not list(Path("runs").glob("*/fifth/*"))


def test_a_metric_that_hangs_is_told_before_anything_is_trained(fifth, said):
    fifth(
        COMPARED.replace("metrics.f1)", "lambda answer, example: time.sleep(60))").replace("\n", "\nimport time\n", 1)
    )
    limit = "limits.term_seconds=0.2"
    refusal = said("run", "fifth", "--data", "rows.jsonl", limit, *SMALLEST, refused=True)
    assert f"the metric 'f1' took more than {limit} on the answer" in refusal
