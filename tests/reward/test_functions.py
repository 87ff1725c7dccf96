"""`reward.function` names functions of one's own: each is a term of the reward and a metric, in our signature or in TRL's."""

import hashlib
import json

import pytest
from conftest import SMALLEST, main, sentences, write_rows

from rlrecipes import UserError, load_profile, run_recipe
from rlrecipes.job import make_job
from rlrecipes.profile import function_names, functions_joined, named_functions
from rlrecipes.recipe import Example, Message, user
from rlrecipes.reward.code import code_of
from rlrecipes.reward.terms import score_term
from rlrecipes.run.folder import Run

OURS = '''
from dataclasses import dataclass

import beside

@dataclass
class Known:
    word: str

def short(prompt, answer, example):
    return 1 / (1 + len(answer.split()))

def target(prompt, answer, example):
    return float(answer == example.columns["target"])

class Counts:
    """An object with a state."""
    calls = 0
    def __call__(self, prompt, answer, example):
        self.calls += 1
        return float(self.calls)
    def state_dict(self):
        return {"calls": self.calls}
    def load_state_dict(self, state):
        self.calls = state["calls"]

counts = Counts()
'''
TRLS = """
def exact(prompts, completions, target, **kwargs):
    return [float(text == wanted) for text, wanted in zip(completions, target)]

def spoken(completions, **kwargs):
    return [float(turns[-1]["content"] == "Yes.") for turns in completions]

def unsure(prompts, completions, target=None):
    return [None]

def seen(prompts, completions, source, **kwargs):
    return [float(sorted(kwargs) == ["target"]) for _ in prompts]

def several(prompts, completions, **kwargs):
    return [1.0, 2.0]

async def later(prompts, completions, **kwargs):
    return [1.0]

def watched(prompts, completions, trainer_state, **kwargs):
    return [1.0]

def odd(text, other):
    return 1.0

class Judge:
    def __call__(self, prompts, completions, **kwargs):
        return [1.0]

class Slow:
    async def __call__(self, prompts, completions, **kwargs):
        return [1.0]

slow = Slow()

def array(prompts, completions, **kwargs):
    import numpy
    return numpy.array([0.5])

def tensor(prompts, completions, **kwargs):
    import torch
    return torch.tensor([0.5])

def lazy(prompts, completions, **kwargs):
    return (0.5 for _ in completions)

def whole(prompts, completions, **kwargs):
    import torch
    return torch.tensor(0.5)

def lacking(prompts, completions, target):
    return [float(target == [None])]
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "beside.py").write_text("WORD = 'x'\n")
    (tmp_path / "ours.py").write_text(OURS)
    (tmp_path / "trls.py").write_text(TRLS)
    write_rows(tmp_path / "pairs.jsonl", sentences(60))
    return tmp_path


def job(*settings, recipe="translation", data="pairs.jsonl"):
    weights = [setting for setting in settings if setting.startswith("terms.")]
    profile = load_profile("tiny", [setting for setting in settings if setting not in weights])
    return make_job(recipe, profile, Run("t", recipe), weights=weights, source=data)


def called(name, answer, turns=None, **columns):
    (function,) = named_functions(name)
    asked = turns or user("Say it.")
    return function(asked, answer, Example(asked, columns=columns))


def test_a_function_is_a_term_of_weight_1_and_a_metric_by_its_own_name(place):
    made = job("reward.function=ours.py:short,trls.py:exact", "terms.short=0.5")
    assert {term.name: term.weight for term in made.recipe.reward.terms} == {"chrf": 0.3, "short": 0.5, "exact": 1.0}
    assert [metric.name for metric in made.metrics][-2:] == ["short", "exact"]
    example = made.data.held_out.prompts[0]
    exact = next(term for term in made.recipe.reward.terms if term.name == "exact")
    assert score_term(exact, [example.answers[0], "no"], [example, example]) == [1, 0]
    assert made.metrics[-2].score("one two three", example) == 0.25


def test_a_function_of_weight_0_is_a_metric_alone(place):
    made = job("reward.function=ours.py:short", "terms.short=0")
    assert "short" not in [term.name for term in made.recipe.reward.terms]
    assert made.metrics[-1].name == "short"


def test_our_signature_reads_the_columns_of_the_row(place):
    assert called("ours.py:target", "Yes.", target="Yes.") == 1
    made = job("reward.function=ours.py:target")
    assert made.data.train.prompts[0].columns["target"] == made.data.train.prompts[0].answers[0]
    assert not any("not read" in note.lower() for note in made.data.notes)
    assert not job().data.train.prompts[0].columns, "kept only where a function may ask for them"


def test_trls_signature_gets_texts_for_text_and_messages_for_chats(place):
    assert called("trls.py:exact", "Yes.", target="Yes.") == 1
    assert called("trls.py:exact", "Yes.", target="No.") == 0
    turns = (Message("system", "Be short."), Message("user", "Well?"))
    assert called("trls.py:spoken", "Yes.", turns) == 1
    assert called("trls.py:spoken", "No.", user("Well?"), prompt=[{"role": "user", "content": "Well?"}]) == 0
    assert called("trls.py:unsure", "Yes.") == 0, "None adds nothing, as in TRL"
    assert called("trls.py:seen", "x", source="s", target="t", prompt="Say it.") == 1


@pytest.mark.parametrize("name", ["array", "tensor", "lazy"])
def test_trls_signature_may_give_whatever_trl_goes_through(place, name):
    assert called(f"trls.py:{name}", "x") == 0.5


def test_one_number_is_no_list_of_scores(place):
    with pytest.raises(ValueError, match="TRL's functions give a list with its score"):
        called("trls.py:whole", "x")


def test_a_column_that_a_row_lacks_is_none_as_in_trl(place):
    assert called("trls.py:lacking", "x") == 1
    assert called("trls.py:lacking", "x", target="t") == 0


def test_the_functions_of_a_file_share_it_and_it_runs_once(place, capsys):
    (place / "both.py").write_text(
        "print('read')\nseen = []\n"
        "def first(prompt, answer, example):\n    seen.append(answer)\n    return 1.0\n"
        "def second(prompt, answer, example):\n    return float(len(seen))\n"
    )
    first, second = named_functions("both.py:first,both.py:second")
    first(user("x"), "y", Example(user("x")))
    assert second(user("x"), "y", Example(user("x"))) == 1
    assert capsys.readouterr().out == "read\n"


def test_what_fails_is_not_told_to_take_weight_0_since_it_is_a_metric_still(place):
    term = job("reward.function=trls.py:several").recipe.reward.terms[-1]
    with pytest.raises(UserError, match=r"; mend it$"):
        score_term(term, ["x"], [Example(user("x"))])


def test_a_list_of_another_length_is_told_with_the_row(place):
    made = job("reward.function=trls.py:several")
    term = made.recipe.reward.terms[-1]
    with pytest.raises(
        UserError, match=r"the reward term 'several' raised ValueError \(gave \[1.0, 2.0\] for one answer"
    ):
        score_term(term, ["x"], made.data.held_out.prompts[:1])


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("ours.py,again.py:short", "reward.function=ours.py names no function of a file"),
        ("ours.py", "reward.function=ours.py names no function of a file; write it as file.py:name"),
        ("nowhere.py:short", "there is no file nowhere.py"),
        ("ours.py:shrot", "there is no function 'shrot'; did you mean 'short'?"),
        ("broken.py:short", r"broken.py cannot be imported \(ZeroDivisionError: division by zero\); mend it"),
        ("trls.py:odd", r"trls.py:odd takes \(text, other\); let it take \(prompt, answer, example\), or"),
        ("trls.py:later", "is asynchronous; give a plain function"),
        ("trls.py:slow", "is asynchronous; give a plain function"),
        ("trls.py:Judge", "trls.py:Judge is a class; name an object of it, or a function"),
        ("trls.py:watched", "asks for trainer_state, which TRL's own trainer alone has; give it a default"),
        ("ours.py:short,again.py:short", "names two functions called 'short'; give one another name"),
        ("again.py:reward", "evaluation has a number called 'reward'; give the function another name"),
        ("again.py:chrf", "two reward terms are named 'chrf'"),
        ("again.py:exact_match", "translation has the metric 'exact_match' already; give the function another name"),
        ("again.py:chrf_sampled", "translation has a number called 'chrf_sampled' already"),
        ("again.py:asks", "asks asks for 'targte'; there is no column 'targte'; did you mean 'target'?"),
    ],
)
def test_what_cannot_be_taken_is_one_sentence_before_anything_is_trained(place, setting, said):
    (place / "broken.py").write_text("1 / 0\n")
    (place / "again.py").write_text(
        "short = reward = chrf = chrf_sampled = exact_match = lambda prompt, answer, example: 1.0\n"
        "def asks(prompts, completions, targte): return [1.0]\n"
    )
    with pytest.raises(UserError, match=said):
        job(f"reward.function={setting}")


def test_a_function_that_is_named_several_times_counts_once():
    named = ["reward.function=a.py:x", "sft.max_steps=3", "reward.function=b.py:y", "reward.function=a.py:x"]
    assert functions_joined(named) == ["sft.max_steps=3", "reward.function=a.py:x,b.py:y"]
    assert load_profile("tiny", named).reward.function == "a.py:x,b.py:y"


def test_files_of_two_folders_have_each_the_helper_beside_it(place, monkeypatch):
    monkeypatch.syspath_prepend(place / "one")  # as that from which Python was started
    for folder in ("one", "two"):
        (place / folder / "kit").mkdir(parents=True)
        (place / folder / "helper.py").write_text(f"WORD = '{folder}'\n")
        (place / folder / "kit" / "__init__.py").write_text("from . import inner\n")
        (place / folder / "kit" / "inner.py").write_text(f"WORD = 'inner {folder}'\n")
        for name in (folder, f"{folder}_more"):
            (place / folder / f"{name}.py").write_text(
                "import helper\nimport kit.inner\n\n"
                f"def {name}(prompt, answer, example):\n    return [helper.WORD, kit.inner.WORD]\n"
            )
    names = ("one", "two", "one_more", "two_more")
    functions = named_functions(",".join(f"{name.partition('_')[0]}/{name}.py:{name}" for name in names))
    said = [function(user("x"), "y", Example(user("x"))) for function in functions]
    assert said == [[folder, f"inner {folder}"] for folder in ("one", "two", "one", "two")]


def test_the_name_of_a_file_may_have_a_comma(place):
    (place / "a,b, c.py").write_text(OURS)
    named = ["reward.function=a,b, c.py:short", "reward.function=ours.py:target"]
    first, second = named_functions(load_profile("tiny", named).reward.function)
    assert (first.file.name, first.name, second.file.name) == ("a,b, c.py", "short", "ours.py")
    assert function_names("a,b, c.py:short, ours.py:target,") == ["short", "target"]


def test_the_state_of_an_object_is_the_functions(place):
    (function,) = named_functions("ours.py:counts")
    function(user("x"), "y", Example(user("x")))
    assert function.state_dict() == {"calls": 1}
    function.load_state_dict({"calls": 5})
    assert function(user("x"), "y", Example(user("x"))) == 6
    (plain,) = named_functions("ours.py:short")
    assert not hasattr(plain, "state_dict")


def test_a_changed_file_is_another_reward_and_a_file_beside_it_is_not(place):
    first = code_of(job("reward.function=ours.py:short", "terms.chrf=0").recipe.reward)
    (place / "other.py").write_text("x = 1\n")
    assert code_of(job("reward.function=ours.py:short", "terms.chrf=0").recipe.reward) == first
    (place / "ours.py").write_text(OURS.replace("1 / (1", "2 / (1"))
    again = job("reward.function=ours.py:short", "terms.chrf=0")
    assert code_of(again.recipe.reward) != first
    example = again.data.held_out.prompts[0]
    assert again.metrics[-1].score("one", example) == 1, "the file is read anew"


def test_a_run_keeps_its_functions_and_says_which_code_it_climbed(home, capsys):
    text = "def short(prompt, answer, example):\n    return 1 / (1 + len(answer.split()))\n"
    (home / "rewards.py").write_text(text)
    folder, options = home / "runs" / "functions" / "translation", ("translation", "--run", "functions")
    asked = ("reward.function=rewards.py:short", "terms.short=0.5")
    assert main(["run", *options, "--data", "pairs.jsonl", *SMALLEST, *asked]) == 0
    assert "rewards.py:short is called with (prompt, answer, example)." in capsys.readouterr().out
    ppo = json.loads((folder / "ppo" / "done.json").read_text())
    digest = hashlib.sha256(text.encode()).hexdigest()
    assert ppo["reward_functions"] == {"short": {"file": "rewards.py", "sha256": digest}}
    assert ppo["settings"]["terms.short"] == 0.5
    for stage in ("sft", "reward"):
        settings = json.loads((folder / stage / "done.json").read_text())["settings"]
        assert not {"reward.function", "data.columns"} & settings.keys(), "it stands on no function"

    assert main(["run", *options]) == 0
    assert capsys.readouterr().out.count("done already") == 6
    assert main(["run", *options, "reward.function=none"]) == 2
    assert 'ppo was made with reward.function = "rewards.py:short" where you now have null' in capsys.readouterr().err


def test_functions_are_taken_from_python_too(home):
    (home / "python_rewards.py").write_text("def brief(prompt, answer, example):\n    return -len(answer)\n")
    profile = load_profile("tiny", [*SMALLEST, "reward.function=python_rewards.py:brief"])
    made = run_recipe("translation", profile, ("sft", "reward", "ppo"), data="pairs.jsonl", run="functions-python")
    assert made["ppo"]["metrics"]["terms/brief"] < 0
