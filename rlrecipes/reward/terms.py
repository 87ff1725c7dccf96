"""The reward as a weighted sum of its programmatic terms and the learned score.

    values = term_values(reward, answers, examples) | {"learned": scores}    {"polite": [0.0, 1.0], "learned": [1.3, -0.2]}
    weighted_sum(reward, values of one answer) -> 0.2 * 0.0 + 1.0 * 1.3

A term is a plain function, or an object with state that is called like one. Such an object has `state_dict()` and
`load_state_dict(state)`, as PyTorch's modules do, and checkpoints keep its state.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from rlrecipes.errors import OwnCodeError, UserError, first_line, own_code
from rlrecipes.profile import Function
from rlrecipes.recipe import Example, Prompt, Reward, Term, TermFunction, lent
from rlrecipes.run.console import quiet
from rlrecipes.run.interrupts import time_limit
from rlrecipes.run.processes import from_first
from rlrecipes.text import is_number, quoted, shortened


def score_term(term: Term, answers: Sequence[str], examples: Sequence[Example], seconds: float = 0) -> list[float]:
    """The unweighted value of one term for each answer; `seconds` are the most that one call may take, 0: no limit.

    Raises:
        UserError: as `score_each`. NaN or infinity would turn the policy and the value head to NaN within one update.
    """
    name = shortened(term.name, 30)
    # with weight 0 a function from a file is a metric still, which fails as the term does
    advice = "mend it" if isinstance(term.score, Function) else f"mend the function or set terms.{name}=0"
    return score_each(f"the reward term '{name}'", term.score, advice, answers, examples, seconds)


def score_each(
    what: str, score: TermFunction, advice: str, answers: Sequence[str], examples: Sequence[Example], seconds: float = 0
) -> list[float]:
    """What a person's own function gives each answer; `what` and `advice` are for the sentence of an error.

    Each call gets a copy of its example: what one function takes out of it, the others still find. Of several processes the
    first calls it, so that one with a state or with random numbers of its own does as it does in one.

    Raises:
        UserError: it raises, takes too long, or gives no number that float32 holds; true and false are 1 and 0. The
            sentence names the function, the value and the row.
    """
    return from_first(lambda: _score_each(what, score, advice, answers, examples, seconds))


def _score_each(
    what: str, score: TermFunction, advice: str, answers: Sequence[str], examples: Sequence[Example], seconds: float
) -> list[float]:
    values = []
    for row, (answer, example) in enumerate(zip(answers, examples, strict=True), 1):
        try:
            with own_code(), time_limit(seconds):
                given = score(example.prompt, answer, lent(example))
                wrong = "" if is_number(given) else f"gave {shortened(repr(given), 30)}, which is no number"
        except OwnCodeError as error:
            wrong = shortened(str(error), 70)
        if wrong:
            raise UserError(
                f"{what} {wrong} on the answer {quoted(answer, 40)} to {quoted(example.prompt[-1].content, 40)} "
                f"(row {row} of {len(answers)}); {advice}"
            )
        values.append(float(given))
    return values


def term_values(
    reward: Reward, answers: Sequence[str], examples: Sequence[Example], seconds: float = 0
) -> dict[str, list[float]]:
    """Each term's unweighted values, one for each answer, by name; `seconds` as in `score_term`."""
    return {term.name: score_term(term, answers, examples, seconds) for term in reward.terms}


def weighted_sum(reward: Reward, values: Mapping[str, Any]) -> Any:
    """The sum of the terms' `values` times their weights, `learned` among them; works on numbers and on tensors `[B]`."""
    weights = {term.name: term.weight for term in reward.terms} | {"learned": reward.learned}
    return sum(weights[name] * value for name, value in values.items())


def rewards(
    reward: Reward,
    scorer: Callable[[Sequence[tuple[Prompt, str]]], Sequence[float]] | None,
    answers: Sequence[str],
    examples: Sequence[Example],
    seconds: float = 0,
) -> list[float]:
    """The whole reward of each answer, as PPO has it before clipping and the missing-EOS penalty.

    `scorer` is the learned part, if there is one. Terms with a state begin with a fresh one.
    """
    return [weighted_sum(reward, row) for row in value_rows(reward, scorer, answers, examples, seconds)]


def value_rows(
    reward: Reward,
    scorer: Callable[[Sequence[tuple[Prompt, str]]], Sequence[float]] | None,
    answers: Sequence[str],
    examples: Sequence[Example],
    seconds: float = 0,
) -> list[dict[str, float]]:
    """What `rewards` sums up: each answer's unweighted values by the terms' names, `learned` among them."""
    return going_rows(fresh(reward), scorer, answers, examples, seconds)


def going_rows(
    reward: Reward,
    scorer: Callable[[Sequence[tuple[Prompt, str]]], Sequence[float]] | None,
    answers: Sequence[str],
    examples: Sequence[Example],
    seconds: float = 0,
) -> list[dict[str, float]]:
    """As `value_rows`; terms with a state go on from the one that they have."""
    values = term_values(reward, answers, examples, seconds)
    if scorer is not None:
        pairs = [(example.prompt, answer) for example, answer in zip(examples, answers, strict=True)]
        values["learned"] = list(scorer(pairs))
    return [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]


def shown(reward: Reward, values: Mapping[str, float]) -> dict[str, float]:
    """An answer's reward and its terms' values as columns of a table of samples: `{"reward": 1.2, "terms.learned": 1.0}`."""
    return {"reward": weighted_sum(reward, values)} | {f"terms.{name}": value for name, value in values.items()}


def fresh(reward: Reward) -> Reward:
    """A copy whose terms have a state of their own: evaluation never sees the states of training.

    Raises:
        UserError: a term cannot be copied, such as one that holds a lock or an open file.
    """
    return replace(reward, terms=tuple(replace(term, score=_copied(term)) for term in reward.terms))


def _copied(term: Term) -> TermFunction:
    try:
        with own_code():
            return copy.deepcopy(term.score)
    except OwnCodeError as error:
        raise UserError(
            f"the reward term {quoted(term.name, 30)} cannot be copied ({shortened(first_line(error.raised), 60)}), and "
            "evaluation begins with a fresh one; open files, locks and connections within its call, or give it a __deepcopy__"
        ) from error


def term_states(reward: Reward) -> dict[str, Any]:
    """The states of the terms that have one, by name.

    Raises:
        UserError: a term raises, or its state holds what no checkpoint can hold.
    """
    keeping = {term.name: term.score.state_dict for term in reward.terms if hasattr(term.score, "state_dict")}
    if not keeping:
        return {}
    quiet()  # `pack` brings libraries that speak, and ask the hub, while they are imported
    from rlrecipes.run.checkpoint import pack

    states: dict[str, Any] = {}
    for name, state in keeping.items():
        try:
            with own_code():
                states[name] = state()
                pack(states[name], "it", {})
        except OwnCodeError as error:
            reason = shortened(first_line(error.raised), 60)
            raise UserError(
                f"the state of the reward term {quoted(name, 30)} cannot be kept ({reason}); "
                "let it give dictionaries, lists, texts, numbers and tensors"
            ) from error
    return states


def set_term_states(reward: Reward, states: Mapping[str, Any]) -> None:
    """Puts back the states that `term_states` returned.

    Raises:
        UserError: a term does not take its own back.
    """
    for term in reward.terms:
        if term.name in states:
            try:
                with own_code():
                    term.score.load_state_dict(states[term.name])  # type: ignore[attr-defined]
            except OwnCodeError as error:
                raise UserError(
                    f"the reward term {quoted(term.name, 30)} does not take back the state that a checkpoint kept: it "
                    f"{shortened(str(error), 80)}; mend its load_state_dict, and give the same command again"
                ) from error
