"""A recipe's metrics as a run calls them: on copies of its examples, within a time limit, and told by their names.

the metric 'polite' raised KeyError (no 'tone') on the answer 'Sure.' to 'Book a table'; mend it
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from rlrecipes.errors import OwnCodeError, TooLongError, UserError, own_code, place_of
from rlrecipes.metrics import Scores, mean_of, ratio
from rlrecipes.profile import Function
from rlrecipes.recipe import Example, Metric, lent
from rlrecipes.run.interrupts import time_limit
from rlrecipes.text import is_number, quoted, shortened


def guarded(metric: Metric, seconds: float = 0) -> Metric:
    """The metric, of which each call gets copies of its examples; `seconds` are the most for each answer, 0: no limit.

    What judges all answers together has the time of all of them. A mean is taken answer by answer.

    Raises:
        UserError: when it is called: it raises, takes too long, or scores an answer by what is no finite number.
    """
    name = f"the metric {quoted(metric.name, 30)}"

    def called(
        function: Callable[..., Any], *arguments: Any, where: Callable[[BaseException], str], of: int = 1
    ) -> Any:
        try:
            with own_code(), time_limit(seconds, of):
                return function(*arguments)
        except OwnCodeError as error:
            advice = "mend it, or raise the limit" if isinstance(error.raised, TooLongError) else "mend it"
            told = f"{name} {shortened(str(error), 70)} {where(error.raised)}; {advice}"
            raise UserError(told) from error

    def one_by_one(function: Callable[[str, Example], float]) -> Callable[[str, Example], float]:
        def score(answer: str, example: Example) -> float:
            where = f"on the answer {quoted(answer, 40)} to {quoted(example.prompt[-1].content, 40)}"
            given = called(function, answer, lent(example), where=lambda _: where)
            if not is_number(given):
                raise UserError(f"{name} gave {shortened(repr(given), 30)} {where}, which is no finite number; mend it")
            return float(given)

        return score

    def statistics(answers: Sequence[str], examples: Sequence[Example]) -> Sequence[Sequence[float]]:
        copies, of = [lent(example) for example in examples], len(answers)
        rows: Sequence[Sequence[float]] = called(metric.statistics, answers, copies, where=_within("statistics"), of=of)
        return rows

    def applies(examples: Sequence[Example]) -> bool:
        copies, of = [lent(example) for example in examples], len(examples)
        return metric.applies is None or bool(called(metric.applies, copies, where=_within("applies"), of=of))

    def finish(sums: Sequence[float]) -> float:
        given = called(metric.finish, sums, where=_within("finish"))
        if not is_number(given) and not isinstance(given, float):  # NaN of a resample says that it has no value there
            raise UserError(f"{name} gave {shortened(repr(given), 30)} as the value of all answers, no number; mend it")
        return float(given)

    mean = metric.statistics if isinstance(metric.statistics, Scores) else None
    return replace(
        metric,
        statistics=Scores(one_by_one(mean.score)) if mean else statistics,
        finish=metric.finish if metric.finish is ratio else finish,  # which is called a thousand times
        score=metric.score and one_by_one(metric.score),
        applies=applies,
    )


def metric_of(function: Function) -> Metric:
    """The mean over answers of what a function of the reward gives."""
    return mean_of(function.name, lambda answer, example: function(example.prompt, answer, example))


def _within(function: str) -> Callable[[BaseException], str]:
    """Where an error of a metric's function came from."""
    return lambda error: f"in its `{function}` ({place_of(error)})"
