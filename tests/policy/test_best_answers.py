"""Several answers are drawn to each prompt, scored by the whole reward, and the best is kept; every setting of it counts."""

import dataclasses
from itertools import count
from types import SimpleNamespace

import pytest
import torch
from conftest import scatter

from rlrecipes.errors import UserError
from rlrecipes.model.adapters import load_adapter
from rlrecipes.model.loading import load_causal
from rlrecipes.model.sampling import sample
from rlrecipes.model.tokens import decode, encode_prompt, ends, load_tokenizer
from rlrecipes.policy.best_answers import Best, best_answers, measured, without_choice, write_best
from rlrecipes.profile import LOWEST_TEMPERATURE, DistillSettings, ModelSettings, TrainingSettings, load_profile
from rlrecipes.recipe import Example, Reward, Term, user
from rlrecipes.run.checkpoint import PartsCheckpoints

EXAMPLES = [Example(user(f"{i} " + "x" * (i % 3)), ("ja",)) for i in range(8)]
LENGTH = 6


class BreakError(Exception):
    pass


def vowels(prompt, answer, example):
    return sum(map(answer.count, "aeiou")) + len(answer) / 100


@pytest.fixture(scope="module")
def parts(checkpoint):
    tokenizer = load_tokenizer(checkpoint.model)
    base = load_causal(str(checkpoint.model), ModelSettings(quantization="none"), tokenizer)
    model = load_adapter(base, checkpoint.sft / "adapter", "default")
    scatter(model, "default")
    model.set_adapter("default")
    return model, tokenizer, [(example, encode_prompt(tokenizer, example.prompt)) for example in EXAMPLES]


@pytest.fixture
def draw(parts, tmp_path):
    """Draws with these settings; the tokens 4, 7, … end an answer, so that some end and some do not."""
    numbers = count()

    def draw(reward=vowels, folder=None, checkpoints=None, scorer=None, **settings):
        model, tokenizer, prompts = parts
        table = {"num_generations": 3, "local_rollout_forward_batch_size": 6, **settings}
        profile = dataclasses.replace(load_profile("tiny"), distill=DistillSettings(max_steps=1, **table))
        terms = reward if isinstance(reward, Reward) else Reward(learned=0.0, terms=(Term("own", reward, weight=1.0),))
        job = SimpleNamespace(profile=profile, recipe=SimpleNamespace(reward=terms), seed=0)
        place = folder or tmp_path / str(next(numbers))
        made = (checkpoints or PartsCheckpoints)(place, 1e9, None, 1)
        return best_answers(job, model, tokenizer, prompts, LENGTH, scorer, made)

    return draw


@pytest.fixture(autouse=True)
def ending(parts, monkeypatch):
    monkeypatch.setattr(parts[1], "ends", tuple(range(4, 260, 3)), raising=False)


def test_of_a_prompts_answers_the_one_of_the_highest_reward_is_kept(draw, parts):
    seen = {}

    def told(prompt, answer, example):
        seen.setdefault(prompt, []).append(answer)
        return vowels(prompt, answer, example)

    best = draw(told, missing_eos_penalty=0.0)
    for example, each in zip(EXAMPLES, best, strict=True):
        values = [vowels(None, answer, example) for answer in seen[example.prompt]]
        assert each.scores == values
        assert each.text == seen[example.prompt][values.index(max(values))]
        assert decode(parts[1], each.tokens) == each.text


def test_the_answers_to_a_prompt_differ_and_are_the_same_again_for_the_same_seed(draw):
    first = draw()
    assert first == draw()
    assert any(len(set(each.scores)) > 1 for each in first)


def test_an_answer_is_cut_behind_its_end_and_one_without_an_end_pays_the_penalty(draw, parts):
    free, paid = draw(missing_eos_penalty=0.0), draw(missing_eos_penalty=100.0)
    last = parts[1].ends
    assert all(not set(each.tokens[:-1]) & set(last) for each in free)
    taken = [
        a - b for one, other in zip(free, paid, strict=True) for a, b in zip(one.scores, other.scores, strict=True)
    ]
    assert {round(value) for value in taken} == {0, 100}


def test_the_learned_score_and_the_terms_are_summed_by_their_weights(draw):
    both = Reward(learned=2.0, terms=(Term("own", lambda *_: 3.0, weight=0.5),))
    best = draw(both, scorer=lambda pairs: [float(len(answer)) for _, answer in pairs], missing_eos_penalty=0.0)
    assert all(max(each.scores) == 2.0 * len(each.text) + 1.5 for each in best)


EFFECTS = {
    "num_generations": 2,
    "temperature": 0.3,
    "local_rollout_forward_batch_size": 12,
    "missing_eos_penalty": 50.0,
}


@pytest.mark.parametrize(("name", "value"), EFFECTS.items())
def test_a_setting_of_the_drawing_that_is_changed_changes_what_is_kept(draw, name, value):
    assert draw() != draw(**{name: value})


def test_every_setting_of_the_drawing_is_changed_once():
    # the stage takes `limit` of the prompts, and `anyway` comes before
    own = {field.name for field in dataclasses.fields(DistillSettings)}
    assert EFFECTS.keys() | {"limit", "anyway"} == own - {field.name for field in dataclasses.fields(TrainingSettings)}


class Counting:
    """A term with a state: the answers that it has scored."""

    def __init__(self):
        self.seen = 0

    def __call__(self, prompt, answer, example):
        self.seen += 1
        return self.seen

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state):
        self.seen = state["seen"]


class Breaking(PartsCheckpoints):
    """Ends in an error once four prompts have been saved."""

    def due(self):
        return True

    def save(self, step, state):
        super().save(step, state)
        if step == 4:
            raise BreakError


def test_an_interrupted_drawing_goes_on_with_the_terms_states_and_ends_the_same(draw, tmp_path):
    reward = Reward(learned=0.0, terms=(Term("counting", Counting(), weight=1.0),))
    whole = draw(reward)
    with pytest.raises(BreakError):
        draw(reward, tmp_path / "broken", Breaking)
    torch.manual_seed(5)
    assert draw(reward, tmp_path / "broken") == whole
    assert sorted(score for each in whole for score in each.scores)[-1] == 24


def test_other_random_numbers_stay_where_they_were(draw):
    torch.manual_seed(77)
    before = torch.get_rng_state()
    draw()
    assert torch.equal(torch.get_rng_state(), before)


def test_a_reward_that_is_no_number_is_told_with_its_answer(draw):
    with pytest.raises(
        UserError, match=r"the reward term 'own' gave nan, which is no number on the answer .*row 1 of 6"
    ):
        draw(lambda *_: float("nan"))
    vast = Reward(learned=0.0, terms=(Term("own", lambda *_: 1e30, weight=1e300),))
    with pytest.raises(UserError, match=r"the weighted sum of the reward's terms is inf on the answer .* to '0'"):
        draw(vast)


def test_what_was_drawn_is_measured_and_prompts_without_a_choice_are_told(tmp_path):
    best = [Best([5, 2], "a", [1.0, 3.0]), Best([6, 2], "b", [2.0, 2.0])]
    drawn = measured(best)
    assert drawn == {"answers": 4, "reward": 2.0, "best": 2.5, "flat": 0.5}
    settings = DistillSettings(max_steps=1, num_generations=2)
    assert without_choice(drawn, settings) == []
    (said,) = without_choice({**drawn, "flat": 0.9}, settings)
    assert "90% of the prompts had 2 answers that all scored the same" in said
    assert "raise distill.temperature (1) or distill.num_generations (2)" in said
    write_best(tmp_path / "answers.jsonl", EXAMPLES[:2], best)
    assert (tmp_path / "answers.jsonl").read_text().count('"tokens": [') == 2


def test_batches_may_be_smaller_behind_an_interruption_and_no_prompt_is_answered_twice(draw, tmp_path):
    with pytest.raises(BreakError):
        draw(vowels, tmp_path / "halved", Breaking, local_rollout_forward_batch_size=12)
    scored = []

    def told(prompt, answer, example):
        scored.append(prompt)
        return vowels(prompt, answer, example)

    best = draw(told, tmp_path / "halved", local_rollout_forward_batch_size=6)
    assert all(len(each.scores) == 3 for each in best)
    assert len(scored) == 3 * 4


def test_each_prompt_gets_answers_of_its_own(draw, parts):
    model, tokenizer, prompts = parts
    greedy = []
    for _, ids in prompts:
        query = torch.tensor([ids])
        tokens = sample(model, query, tokenizer.pad_token_id, ends(tokenizer), LENGTH, 0.0).tokens[0].tolist()
        greedy.append([token for token in tokens if token != tokenizer.pad_token_id])
    assert [each.tokens for each in draw(temperature=LOWEST_TEMPERATURE)] == greedy
    assert len(set(map(tuple, greedy))) > 2
