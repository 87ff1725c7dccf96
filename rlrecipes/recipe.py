"""The words a recipe is written in: examples, comparisons, rewards, evaluations.

A recipe is a value. It says what the task is (data, reward, evaluation) and nothing about how big to train it: that is a
`Profile`. Everything here is plain Python, so that listing, showing and testing recipes never waits for torch.

    >>> Example(user("Translate: Das Kind liest."), ("The child reads.",))
"""

from __future__ import annotations

import copy
import importlib
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any, Literal, NamedTuple

from rlrecipes.errors import OwnCodeError, UserError, first_line, own_code, program
from rlrecipes.text import quoted, shortened

BUILT_IN = "built-in"
"""The source of a recipe's built-in data."""
HUB = "hub"
"""The source of a recipe's default public sets; `hub:<id>,…` names some of its sets."""
RECIPES = Path(__file__).resolve().parent.parent / "recipes"
"""The recipes of the package itself."""


def is_hub(source: str | None) -> bool:
    """Whether a source of data names the hub rather than files."""
    return source is not None and (source == HUB or source.startswith(f"{HUB}:"))


class Message(NamedTuple):
    """One turn of a chat."""

    role: str
    """`system`, `user` or `assistant`."""
    content: str


Prompt = tuple[Message, ...]


def user(content: str) -> Prompt:
    """A prompt of one user turn."""
    return (Message("user", content),)


def _check_tuple(what: str, parts: Any, kind: type = object, write: str = "(text,) with its comma") -> None:
    """Refuses a field that is no tuple of a kind: of a text, each letter would be taken for a part."""
    if odd := [part for part in parts if not isinstance(part, kind)] if type(parts) is tuple else [parts]:
        kinds = "texts" if kind is object else f"{kind.__name__}s"
        raise UserError(f"{what} must be a tuple of {kinds}, and a {type(odd[0]).__name__} stands there; write {write}")


def _check_prompt(prompt: Any) -> None:
    _check_tuple("a prompt", prompt, Message, "user(text), or (Message('user', text),)")


UNLEARNED = "unlearned"
"""The key of `Example.truth` under which stand the places of turns of the prompt that SFT must not imitate."""


@dataclass(frozen=True)
class Example:
    """A prompt and its reference answers.

    Raises:
        UserError: the prompt is no tuple of messages, the answers are no tuple, or the truth is no mapping.
    """

    prompt: Prompt
    answers: tuple[str, ...] = ()
    """SFT imitates the first; metrics count any of them as right."""
    truth: Mapping[str, Any] = field(default_factory=dict)
    """What rewards and metrics know of this prompt beside its answers, such as the slots of a booking."""
    columns: Mapping[str, Any] = field(default_factory=dict, compare=False)
    """All columns of its row, where the recipe's `Columns.keep` asks for them."""

    def __post_init__(self) -> None:
        _check_prompt(self.prompt)
        _check_tuple("the answers of an Example", self.answers)
        if not isinstance(self.truth, Mapping):
            raise UserError(f"the truth of an Example must be a dict, and a {type(self.truth).__name__} stands there")


def lent(example: Example) -> Example:
    """The example for one call of a person's own function, which may change its copy of the truth and nobody else's."""
    return replace(example, truth=copy.deepcopy(example.truth), columns=copy.deepcopy(example.columns))


@dataclass(frozen=True)
class Comparison:
    """A prompt with an answer that was preferred to another."""

    prompt: Prompt
    chosen: str
    rejected: str
    flipped: bool | None = None
    """Whether built-in data swapped the two on purpose; None where the truth is not known."""
    margin: float | None = None
    """By how much the chosen answer's score should exceed the other's (arXiv 2307.09288, section 3.2.2); 0 or more."""

    def __post_init__(self) -> None:
        _check_prompt(self.prompt)


@dataclass(frozen=True)
class Rating:
    """A prompt, an answer and the score it was given (higher is better)."""

    prompt: Prompt
    answer: str
    score: float

    def __post_init__(self) -> None:
        _check_prompt(self.prompt)


@dataclass(frozen=True)
class Metric:
    """How answers are judged under one name."""

    name: str
    statistics: Callable[[Sequence[str], Sequence[Example]], Sequence[Sequence[float]]]
    """Rows `[examples, k]` of numbers that may be summed over examples."""
    finish: Callable[[Sequence[float]], float]
    """The metric from the `k` summed statistics."""
    score: Callable[[str, Example], float] | None = None
    """One answer's own score, where the metric is the mean of such; a headline needs it."""
    needs: str | None = None
    """A key of `Example.truth` that the metric reads; it does not apply to data without it."""
    applies: Callable[[Sequence[Example]], bool] | None = None
    """Whether it can judge answers to these held-out examples, whose language it may not know; None: any."""


@dataclass(frozen=True)
class Split:
    """The rows of one side: those that are trained on, or those that are held out."""

    demonstrations: Sequence[Example] = ()
    """What SFT imitates: the prompt and `answers[0]`, faults included; empty in the held-out split."""
    prompts: Sequence[Example] = ()
    """What PPO answers, or the policies in evaluation. Programmatic reward terms and metrics see the answers and truth of
    these examples; the learned reward does not."""
    comparisons: Sequence[Comparison] = ()
    """What the reward model learns from, or its accuracy is measured on."""
    ratings: Sequence[Rating] = ()
    """Graded answers: what a reward model learns from by regression, or its scores are correlated with."""


@dataclass(frozen=True)
class Data:
    """What a recipe trains on and is judged by."""

    source: str
    """`built-in`, the path of the files, or `hub:<id>@<revision>,…`."""
    train: Split
    held_out: Split
    """Never trained on."""
    notes: Sequence[str] = ()
    """What was derived and how, in one sentence each; the console shows them."""
    dropped: Mapping[str, int] = field(default_factory=dict)
    """Rows left out, counted by reason."""
    metrics: Sequence[Metric] = ()
    """Metrics that only these data make possible. They come before the recipe's own and replace those of the same name."""
    lacking: str = ""
    """Why no answer is preferred to another, where that is known: "'label' is positive in all 40 rows"."""
    hub: Sequence[Mapping[str, Any]] = ()
    """The hub's sets: the id, config, splits, resolved revision, licence and rows of each, as `done.json` records them."""


TermFunction = Callable[[Prompt, str, Example], float]


@dataclass(frozen=True)
class Term:
    """One programmatic part of a reward: a plain function of (prompt, answer, example)."""

    name: str
    score: TermFunction
    weight: float
    needs: str | None = None
    """A key of `Example.truth` that the term reads. On data without it the term is left out, and the console says so."""


@dataclass(frozen=True)
class Reward:
    """What PPO maximises: `learned` times the reward model's score plus each term's weight times its value.

    The learned score has mean 0 and standard deviation 1 over the demonstrations, so weights compare across recipes.
    How the sum is shaped (KL penalty, clipping, missing-EOS penalty) depends on the budget and lives in the profile.

    Raises:
        UserError: `terms` holds anything but terms that a text names.
    """

    learned: float = 1.0
    """Weight of the reward model's score; 0 needs no reward model."""
    terms: tuple[Term, ...] = ()

    def __post_init__(self) -> None:
        _check_parts("Reward.terms", self.terms, Term)


EVALUATED = ("reward", "judge", "disagreement", "bertscore", "comet")
"""What stands beside the metrics in a policy's numbers; the headline is there once more as `<name>_sampled`."""


@dataclass(frozen=True)
class Evaluation:
    """How answers are judged.

    Raises:
        UserError: it holds anything but metrics, two have one name, or one has a name under which something else is told.
    """

    metrics: tuple[Metric, ...]
    """The first that applies to the data is the headline; it must score answers one by one."""

    def __post_init__(self) -> None:
        _check_parts("Evaluation.metrics", self.metrics, Metric)
        names = [metric.name for metric in self.metrics]
        for name in names:
            if names.count(name) > 1:
                raise UserError(f"two metrics are named {quoted(name)}; give one of them another name")
            if name in EVALUATED or (name.endswith("_sampled") and name.removesuffix("_sampled") in names):
                raise UserError(f"a metric is named {quoted(name)}, as evaluation's own is; give it another name")


def _check_parts(what: str, parts: Any, kind: type) -> None:
    """Refuses a field that is no tuple of named parts of a kind, such as one in brackets without its comma."""
    _check_tuple(what, tuple(parts) if isinstance(parts, list) else parts, kind, "(one,) with its comma")
    for part in parts:
        if not isinstance(part.name, str):
            raise UserError(f"a {kind.__name__} is named {shortened(repr(part.name), 40)}; name it by a text")


@dataclass(frozen=True)
class Columns:
    """The columns of this task's data, and the function that reads one row."""

    required: tuple[str, ...]
    example: Callable[[Mapping[str, Any]], Example]
    """Reads a row. A `ValueError` that names the field and what it should hold leaves the row out. What the row holds is
    cut from its text."""
    optional: tuple[str, ...] = ()
    keep: bool = False
    """Whether each example keeps all columns of its row, for rewards and metrics that read them; `reward.function` does."""
    alone: bool = False
    """Whether rows are taken that bring a prompt and no answer; `run.start` takes them where nothing is imitated."""
    values: Mapping[str, Collection[str]] = field(default_factory=dict)
    """All that a column may hold, as `spelled` spells it: `{"label": ("1", "0")}`. A file with anything else is refused."""


def spelled(value: Any) -> str:
    """A label as it is compared: lower-case text without spaces around it."""
    return str(value).strip().lower()


TRUTHS = {**dict.fromkeys(("true", "yes", "1", "1.0"), True), **dict.fromkeys(("false", "no", "0", "0.0"), False)}
"""How files write true and false, as `spelled` spells it."""


def truth_of(value: Any) -> bool | None:
    """Whether a value says true or false, also as a number or a text; None where it says neither."""
    return TRUTHS.get(spelled(value))


Service = Literal["demonstrations", "prompts", "preferences", "ratings", "held out"]


@dataclass(frozen=True)
class HubSet:
    """A data set of the Hugging Face hub, and how a recipe reads its rows."""

    id: str
    """`owner/name`."""
    serves: tuple[Service, ...]
    """What its rows are used for. `held out`: the whole split is held out, and no stage trains on it."""
    columns: tuple[str, ...]
    """The columns that `read` needs; `translation.de` is a field within one. A set that lacks one is refused."""
    read: Callable[[Mapping[str, Any]], Example | Comparison | Rating]
    """Reads a row; a `ValueError` with the reason leaves it out. Where the set serves as demonstrations or prompts, a
    comparison gives its chosen answer."""
    licence: str
    """The licence on the set's card, or what is known instead."""
    config: str | None = None
    """Its configuration; None: the default one."""
    split: str = "train"
    test: str | None = None
    """The split that is held out; None: one row in five, drawn by the prompt."""
    revision: str | None = None
    """Branch, tag or commit; None: the newest when it is fetched. The commit is recorded in any case."""
    take: int | None = None
    """Most rows of each split, in equal shares from the start of each of its files. None: all."""
    where: Mapping[str, str] = field(default_factory=dict)
    """Takes only rows with these values, by column; the others do not count towards `take`."""
    default: bool = True
    """Whether `DATA=hub` takes it; otherwise `DATA=hub:<id>` does."""
    truths: tuple[str, ...] = ()
    """Columns that hold true or false, which `read` gets as such; a row with anything else there is refused."""
    metrics: tuple[Metric, ...] = ()
    """Metrics that come before the recipe's own where evaluation uses this set."""


@dataclass(frozen=True)
class Recipe:
    """A task, whole: its data, its reward and its evaluation.

    Fields with a default are optional. A recipe without built-in data trains on the user's data or on public sets.
    """

    name: str
    """The name of its folder."""
    summary: str
    """One line, for `list`."""
    columns: Columns
    reward: Reward
    evaluation: Evaluation
    builtin: Callable[[], Data] | None = None
    """Makes the built-in data: small, generated, with known truth."""
    documents: Callable[[], Sequence[Example]] | None = None
    """Text of the same kind as the built-in data, which trains the embedded base; none of it is held out."""
    compare: Callable[[Example, Sequence[Example], Random], Comparison | None] | None = None
    """Makes a comparison from an example of data without preferences; other examples of the same data may help.

    The rejected answer is plausible but worse, and no reference. None: this example gives no pair.
    """
    compared: str = "the recipe makes the rejected answers"
    """What `compare` does, as the console states it: "the rejected answer is …"."""
    caution: Callable[[Sequence[Example]], str | None] | None = None
    """What people should know of what SFT imitates, in a sentence, such as how much of it is called bad; None: nothing."""
    judge: Callable[[Sequence[Example]], Metric | None] | None = None
    """Fits a metric to the held-out rows alone, for data whose truth is a label rather than an answer."""
    hub: tuple[HubSet, ...] = ()
    """Public data sets of this task."""
    prefix: str = ""
    """The start of the recipe's prompts, such as "Translate: "; `chat` puts it before what a person types."""


def recipe_roots() -> list[Path]:
    """The folders of recipes and profiles: `recipes/` in the working directory, which goes first, and the package's own."""
    return list(dict.fromkeys([Path("recipes").resolve(), RECIPES]))


def recipe_names() -> list[str]:
    """The folders under `recipes/` that hold a `recipe.py`: the folder is the registry."""
    return sorted({path.parent.name for root in recipe_roots() for path in root.glob("*/recipe.py")})


def load_recipe(name: str) -> Recipe:
    """The `RECIPE` of `recipes/<name>/recipe.py`.

    Raises:
        UserError: there is no such recipe, it cannot be imported, or it is not named after its folder.
    """
    if name not in recipe_names():
        raise UserError(unknown("recipe", name, recipe_names(), f"see `{program()} list`"))
    file = f"recipes/{name}/recipe.py"
    path = next(path for root in recipe_roots() if (path := root / name / "recipe.py").is_file())
    importlib.import_module("recipes").__path__ = [str(root) for root in recipe_roots()]
    try:
        with own_code():
            module = importlib.import_module(f"recipes.{name}.recipe")
    except OwnCodeError as error:
        raised, place = error.raised, _place(error.raised, path.parent)
        if isinstance(raised, UserError):
            raise UserError(f"{file}{place}: {raised}") from raised
        reason = f"{type(raised).__name__}: {first_line(raised)}{place}"
        raise UserError(f"{file} cannot be imported: {reason}; mend it") from raised
    if Path(str(module.__file__)).resolve() != path.resolve():
        raise UserError(
            f"{path} is hidden by {module.__file__}; put an empty __init__.py beside it, or start Python anew if the "
            "working directory has changed"
        )
    recipe = getattr(module, "RECIPE", None)
    if not isinstance(recipe, Recipe):
        raise UserError(f"{file} has no RECIPE; give the name to its `rlrecipes.recipe.Recipe`")
    if recipe.name != name:
        raise UserError(f"{file} names its recipe '{recipe.name}'; give it the name of its folder, '{name}'")
    return recipe


def _place(error: BaseException, folder: Path) -> str:
    """The file and line of a folder's code that raised an error; empty for a syntax error, whose text has them."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).parent == folder]
    return f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""


def unknown(kind: str, name: str, known: Sequence[str], otherwise: str) -> str:
    """One sentence about a name that does not exist, with the nearest that does."""
    import difflib

    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"there is no {kind} '{name}'; " + (f"did you mean '{near[0]}'?" if near else otherwise)
