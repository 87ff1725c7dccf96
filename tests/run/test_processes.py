"""What a launcher left says where a process stands; one process divides nothing. `stages/test_several` has several."""

import os

import pytest
import torch

from rlrecipes.errors import UserError
from rlrecipes.run import gradients, processes
from rlrecipes.run.alive import _runs
from rlrecipes.run.environment import Standing, check_environment, hide, rank_said, standing

LAUNCHED = {
    **{"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4", "MASTER_ADDR": "node0"},
    **{"MASTER_PORT": "29500", "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "2"},
}


@pytest.fixture
def launched(monkeypatch):
    for name, value in LAUNCHED.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def test_a_process_knows_where_it_stands_and_its_libraries_do_not(launched):
    launched.setenv("TORCHELASTIC_RUN_ID", "x")
    assert standing() == Standing(5, 8, 1, 4, "node0", 29500, served=True, attempt="2")
    assert rank_said() == 5
    hide()
    assert not [name for name in os.environ if name in LAUNCHED or name.startswith("TORCHELASTIC_")]
    assert standing() is None
    assert rank_said() == 0


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("MASTER_ADDR", None, "MASTER_ADDR is missing"),
        ("RANK", "five", "one of its numbers is none"),
        ("RANK", "8", "RANK=8 is none of WORLD_SIZE=8 processes"),
    ],
)
def test_what_a_launcher_did_not_say_is_asked_for(launched, name, value, said):
    launched.delenv(name) if value is None else launched.setenv(name, value)
    with pytest.raises(UserError, match=said):
        standing()


def test_what_asks_for_more_than_processes_is_refused_with_the_reason(launched):
    launched.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    launched.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UserError) as error:
        check_environment()
    assert str(error.value).startswith("ACCELERATE_USE_FSDP=true would change the training")
    assert "sampling reads all of a 4-bit base at every token" in str(error.value)
    launched.setenv("ACCELERATE_USE_FSDP", "false")
    launched.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(UserError, match="those of adapters are megabytes"):
        check_environment()


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_shares_of_rows_come_together_in_their_order(monkeypatch, world, count):
    shares = []
    for rank in range(world):
        monkeypatch.setattr(processes, "world", lambda: world)
        monkeypatch.setattr(processes, "rank", lambda rank=rank: rank)
        shares.append(processes.own(range(count)))
    assert processes.interleaved(shares) == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_one_process_divides_nothing_and_leaves_all_as_it_is():
    state, loss = torch.get_rng_state(), torch.ones((), requires_grad=True)
    with processes.joined(), processes.together(), gradients.own_numbers(0, 1):
        assert (processes.world(), processes.rank(), processes.several(), processes.local_rank()) == (1, 0, 1, None)
        assert processes.is_first()
        assert processes.divided([1, 2], lambda rows: [row * 2 for row in rows]) == [2, 4]
        assert processes.from_first(lambda: loss) is loss
        assert processes.gather(loss) == [loss]
        assert gradients.whole_loss(loss) is loss
        assert processes.add_up(loss) is loss
        gradients.check_together("weights", object())
    assert torch.equal(torch.get_rng_state(), state)
    assert not processes.broken()


def test_a_process_that_ended_is_told_from_one_that_runs():
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    assert not _runs(child), "nobody has waited for it yet"
    os.waitpid(child, 0)
    assert not _runs(child)
    assert _runs(os.getpid())
