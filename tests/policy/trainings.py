"""What trainings are compared by, and how they are broken off."""

import torch

from rlrecipes.run.checkpoint import Checkpoints


def trained(trainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}


def logged(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def largest_difference(one, other):
    assert one.keys() == other.keys()
    return max((one[name] - other[name]).abs().max().item() for name in one)


class BreakError(Exception):
    pass


def breaking_after(update):
    """Checkpoints that end training once this update's is written."""

    class Breaking(Checkpoints):
        def save(self, step, state):
            super().save(step, state)
            if step == update:
                raise BreakError

    return Breaking


def end_of(trainer):
    """Weights, logs without the speed, and all else that would decide a further update."""
    logs = [{key: value for key, value in row.items() if key != "eps"} for row in trainer.state.log_history]
    state = trainer.resume_state()
    optimizer = {
        f"{number}.{name}": value.tolist() if isinstance(value, torch.Tensor) else value
        for number, values in state["optimizer"]["state"].items()
        for name, value in values.items()
    }
    counters = {**state["counters"], "log_history": None, "taken": state["taken"], "kl_coef": state["kl_coef"]}
    scheduler = state["scheduler"]["last_epoch"]
    weights = {str(number): tensor.clone() for number, tensor in enumerate(state["weights"])}
    return weights, logs, (optimizer, counters, scheduler, state["random"]["torch"].tolist())
