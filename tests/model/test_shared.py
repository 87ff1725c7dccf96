"""Answers to one prompt in one row have the states that each has in a row of its own, and the prompt is read once."""

import pytest
import torch
from families import FAMILIES
from transformers import AutoConfig, AutoModelForCausalLM

from rlrecipes.model import shared
from rlrecipes.model.forward import states_at, trunk
from rlrecipes.model.shared import NOTHING, PROMPT, can_share, pack, shared_states_at

PROMPTS = ([5, 6, 7, 8, 9, 10, 11], [5, 6, 7], [5, 6, 7, 8])
"""The second is how the others begin."""
ANSWERS = ([[3, 4], [5], [6, 7, 8]], [[9, 10], [11, 12, 13, 14]], [[3]])
ROWS = [(prompt, answer) for prompt, answers in zip(PROMPTS, ANSWERS, strict=True) for answer in answers]
LENGTHS, ENDS = (torch.tensor([*map(len, each)]) for each in ([p for p, _ in ROWS], [p + a for p, a in ROWS]))
IDS = torch.nn.utils.rnn.pad_sequence([torch.tensor(p + a) for p, a in ROWS], batch_first=True)
PLACES = (LENGTHS[:, None] - 1 + torch.arange(4)).clamp(max=IDS.shape[1] - 1)
READ = ENDS[:, None] > PLACES
ONE_BY_ONE = {"bloom", "mistral", "gemma2"}
"""Families whose positions are distances in the row, or whose layers look back on a window."""


def build(family):
    torch.manual_seed(0)
    sizes = {"vocab_size": 32, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1, **FAMILIES[family]}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes)).eval()


@pytest.fixture
def model():
    return build("llama")


@pytest.fixture
def read(model):
    """The shapes of what the trunk is given."""
    shapes = []
    trunk(model).register_forward_pre_hook(
        lambda _, args, given: shapes.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    return shapes


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - ONE_BY_ONE))
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_states_are_those_of_rows_of_their_own(family, attention):
    model = build(family)
    model.set_attn_implementation(attention)
    assert can_share(model)
    found = shared_states_at(model, IDS, PLACES, LENGTHS, ENDS)
    assert torch.allclose(found[READ], states_at(model, IDS, PLACES)[READ], atol=1e-5)


@pytest.mark.parametrize("family", sorted(ONE_BY_ONE))
def test_a_model_whose_answers_would_differ_in_one_row_is_known(family):
    assert not can_share(build(family))


def test_a_model_that_takes_no_positions_is_known(model, monkeypatch):
    inner = trunk(model)
    usual = inner.forward
    monkeypatch.setattr(inner, "forward", lambda position_ids=None, **given: usual(**given))
    assert not can_share(model)


def test_the_trial_leaves_the_model_in_training(model):
    assert can_share(model.train())
    assert model.training


def test_a_prompt_is_read_once_for_its_answers(model, read):
    shared_states_at(model, IDS, PLACES, LENGTHS, ENDS)
    assert read == [(3, 7 + 2 + 1 + 3)]


def test_gradients_are_those_of_rows_of_their_own(model):
    found = []
    for states in (shared_states_at(model, IDS, PLACES, LENGTHS, ENDS), states_at(model, IDS, PLACES)):
        model.zero_grad()
        (states[READ] * torch.linspace(-1, 1, states.shape[-1])).sum().backward()
        found.append(
            {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
        )
    assert found[0].keys() == found[1].keys()
    assert max((found[0][name] - found[1][name]).abs().max() for name in found[0]) < 1e-4


def test_rows_are_packed_in_their_order_each_with_its_own_positions():
    packed = pack(IDS, LENGTHS, ENDS)
    assert packed.ids[1].tolist() == [5, 6, 7, 9, 10, 11, 12, 13, 14, 0, 0, 0, 0]
    assert packed.positions[1].tolist() == [0, 1, 2, 3, 4, 3, 4, 5, 6, 0, 0, 0, 0]
    assert packed.owners[1].tolist() == [PROMPT] * 3 + [3] * 2 + [4] * 4 + [NOTHING] * 4
    assert packed.rows.tolist() == [0, 0, 0, 1, 1, 2]


def test_only_rows_that_stand_next_to_each_other_share_a_prompt(model):
    order = torch.tensor([0, 3, 1, 4, 2, 5])
    assert len(pack(IDS[order], LENGTHS[order], ENDS[order]).ids) == 6


def test_where_it_would_be_more_work_rows_stay_their_own(model, read):
    one = torch.tensor([[5, 6, 7]])
    long = torch.cat([one.expand(4, -1), torch.arange(400).view(4, 100) % 30 + 2], 1)
    lengths = torch.full((4,), 3)
    places = lengths[:, None] - 1 + torch.arange(100)
    shared_states_at(model, long, places, lengths, lengths + 100)
    assert read == [(4, 103)], "attention over all answers costs more than three tokens save"


def test_states_that_differ_are_noticed(model, monkeypatch):
    usual = shared._mask
    monkeypatch.setattr(shared, "_mask", lambda owners, dtype: usual(torch.full_like(owners, PROMPT), dtype))
    assert not can_share(model), "answers that see each other"
