"""A whole model from elsewhere answers the run's prompts, or is told what would help where it has no room for them."""

from types import SimpleNamespace

import pytest

from rlrecipes.errors import UserError
from rlrecipes.profile import ModelSettings
from rlrecipes.recipe import Example, user
from rlrecipes.run.stages import Policy
from rlrecipes.stages.answers import _whole_model


def voice(checkpoint, letters, length, max_length):
    """The voice of a model that reads letters and has a window of 128; the template adds two to a prompt."""
    job = SimpleNamespace(profile=SimpleNamespace(model=ModelSettings(quantization="none", max_length=max_length)))
    policy = Policy("theirs", place=str(checkpoint.model))
    return _whole_model(job, policy, [Example(user("a")), Example(user("a" * letters))], length)


@pytest.mark.parametrize(
    ("letters", "length", "max_length", "said"),
    [
        (
            88,
            10,
            64,
            "100 tokens of theirs, which has room for 64 (model.max_length); leave it out, or take a new run with ",
        ),
        (
            119,
            10,
            64,
            "131 tokens of theirs, which has room for 64 (model.max_length); leave it out, or take a model with",
        ),
        (
            119,
            10,
            512,
            "131 tokens of theirs, which has room for 128 (its own window); leave it out, or take a model with",
        ),
        (
            8,
            200,
            512,
            "210 tokens of theirs, which has room for 128 (its own window); leave it out, or take a model with",
        ),
    ],
)
def test_what_would_give_room_is_what_the_refusal_of_a_whole_model_advises(
    checkpoint, letters, length, max_length, said
):
    with pytest.raises(UserError) as error:
        voice(checkpoint, letters, length, max_length)
    assert said in str(error.value)
    if "a new run with model.max_length=" in str(error.value):
        assert voice(checkpoint, letters, length, int(str(error.value).rpartition("=")[2]))


def test_a_prompt_that_just_fits_is_answered(checkpoint):
    assert len(voice(checkpoint, 116, 10, 512).prompts[1]) == 118
