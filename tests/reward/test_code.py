"""A reward whose code changes while PPO is interrupted, or after it."""

import importlib.util

from rlrecipes.recipe import Reward, Term, load_recipe
from rlrecipes.reward.code import code_of

TERM = "def term(prompt, answer, example):\n    return {value}\n"


def reward_in(path, value, beside=""):
    path.parent.mkdir(exist_ok=True)
    path.write_text(TERM.format(value=value))
    (path.parent / "words.py").write_text(beside)
    spec = importlib.util.spec_from_file_location("mine", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return Reward(terms=(Term("mine", module.term, 1.0),))


def test_the_code_is_another_when_the_terms_file_or_one_beside_it_changes(tmp_path):
    path = tmp_path / "mine" / "recipe.py"
    first = code_of(reward_in(path, 1))
    assert code_of(reward_in(path, 1)) == first
    assert code_of(reward_in(path, 2)) != first
    assert code_of(reward_in(path, 1, "SLOTS = 3")) != first


def test_a_reward_without_code_of_ones_own_has_none():
    assert code_of(Reward()) is None
    assert code_of(Reward(terms=(Term("length", len, 1.0),))) is None
    assert code_of(load_recipe("translation").reward)
