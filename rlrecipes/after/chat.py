"""A talk with a run's policies: in the terminal, or one answer for each line of standard input.

    ppo> Das Kind liest den Brief.
    The child reads the letter.
      reward +1.42, 9 tokens
    ppo> /policy sft

The reward is the reward model's standardised score (mean 0, deviation 1 over the demonstrations). The recipe's programmed
terms need references, and a typed prompt has none.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel

from rlrecipes.after.finished import FinishedRun
from rlrecipes.errors import UserError
from rlrecipes.model.adapters import adapter, load_policies
from rlrecipes.model.forward import device
from rlrecipes.model.loading import check_model, load_causal, window
from rlrecipes.model.sampling import sample
from rlrecipes.model.tokens import decode, encode_prompt, ends, open_tokenizer, pad_left
from rlrecipes.recipe import Message, Prompt
from rlrecipes.reward.head import Scorer
from rlrecipes.reward.model import open_learned
from rlrecipes.run.console import say, shown
from rlrecipes.run.stages import POLICIES

COMMANDS = "/policy {}, /clear, /quit"
LIKE_COMMANDS = "a message that starts with / needs a space before it"
NO_TEXT = "this is not UTF-8 text; check the terminal's or the file's encoding"
BOM = "\ufeff"
"""Some editors write it at the start of a file; it is no part of the text."""


@dataclass(frozen=True)
class Answer:
    """A policy's answer."""

    text: str
    tokens: int
    """EOS included."""
    ended: bool
    """Whether it ended with EOS, rather than at the most tokens."""
    reward: float | None
    """The reward model's standardised score; None without a reward model."""


@dataclass(frozen=True)
class Voice:
    """The policies of a run, loaded on one base."""

    finished: FinishedRun
    model: PeftModel
    tokenizer: Any
    scorer: Scorer | None
    """The learned reward of answers; None without a reward model."""
    window: int
    """The most tokens of a prompt and its answer."""
    temperature: float

    def answer(self, policy: str, prompt: Prompt, on_text: Callable[[str], None]) -> Answer:
        """Samples an answer, and calls `on_text` with each piece as soon as its characters are whole.

        Raises:
            UserError: the prompt is not UTF-8 text, or leaves no room for an answer.
        """
        if not all(is_text(message.content) for message in prompt):
            raise UserError(NO_TEXT)
        ids = encode_prompt(self.tokenizer, prompt)
        room = self.window - len(ids)
        if room < 1:
            raise UserError(f"the prompt has {len(ids)} tokens, and {self.window} is the most with its answer")
        length = min(room, self.finished.answer_length or room)
        pad, last = self.tokenizer.pad_token_id, ends(self.tokenizer)
        stream = Stream(self.tokenizer, on_text)
        query = pad_left([ids], pad).to(device())
        with adapter(self.model, POLICIES[policy].role):
            tokens = sample(self.model, query, pad, last, length, self.temperature, on_tokens=stream.add).tokens[0]
        text = stream.end()
        reward = None
        if self.scorer is not None:
            (reward,) = self.scorer([(prompt, text)])
        return Answer(text, len(tokens), int(tokens[-1]) in last, reward)


class Stream:
    """Hands on the pieces of a growing answer. Together they are the text that `decode` makes of all its tokens.

    A token of byte-level BPE may hold a part of a character, which decodes to U+FFFD until its other bytes are there.
    Spaces wait for what follows them, since `decode` strips them from the end.
    """

    def __init__(self, tokenizer: Any, on_text: Callable[[str], None]) -> None:
        self.tokenizer, self.on_text = tokenizer, on_text
        self.ids: list[int] = []
        self.text = ""

    def add(self, tokens: torch.Tensor) -> None:
        """Takes the next token, `[1]`."""
        self.ids += tokens.tolist()
        self._show(decode(self.tokenizer, self.ids).rstrip("\N{REPLACEMENT CHARACTER}").rstrip())

    def end(self) -> str:
        """Hands on the rest, and returns the whole text."""
        text = decode(self.tokenizer, self.ids)
        self._show(text)
        return text

    def _show(self, text: str) -> None:
        if len(text) > len(self.text) and text.startswith(self.text):
            piece, self.text = text[len(self.text) :], text
            self.on_text(piece)


def load_voice(finished: FinishedRun, temperature: float) -> Voice:
    """Loads all policies of a run and its reward model, on its base as it was in training.

    Raises:
        UserError: the base is gone or cannot be loaded, or a file of the run is damaged.
    """
    base, run = finished.base_model(), finished.run
    _ = finished.prompts  # read now: damage must not look like a fault of the question
    check_model(base, finished.model)
    tokenizer = open_tokenizer(base)
    model = load_policies(load_causal(base, finished.model, tokenizer), run, finished.policies)
    scorer = open_learned(run.stage("reward"), model, tokenizer, finished.model, 1).score if finished.learned else None
    return Voice(finished, model.eval(), tokenizer, scorer, window(base, finished.model), temperature)


# In the terminal.


def talk(voice: Voice, policy: str) -> None:
    """Reads, answers and shows the reward until Ctrl-D, Ctrl-C or `/quit`. Ctrl-C while it answers stops the answer."""
    # Otherwise SIGTERM acts like Ctrl-C, and stops only an answer.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - input() edits lines with it, and keeps a history
    say(opening(voice, policy))
    turns: Prompt = ()
    while (text := _read(f"{policy}> ")) is not None:
        command, _, argument = text.partition(" ")
        if not is_text(text):
            print(NO_TEXT)
        elif command == "/quit":
            return
        elif command == "/clear":
            turns = ()
        elif command == "/policy":
            previous, policy = policy, _switch(voice, argument.strip(), policy)
            turns = turns if policy == previous else ()
        elif command.startswith("/"):
            say(f"there is no {command}; there are {commands(voice)}; {LIKE_COMMANDS}")
        elif text.strip():
            turns = _turn(voice, policy, turns, text.strip())


def opening(voice: Voice, policy: str) -> str:
    """The first lines of a talk: the policy, what a prompt looks like, and the commands."""
    finished = voice.finished
    how = f"temperature {voice.temperature:g}" if voice.temperature else "greedy"
    lines = [f"{finished.recipe.name}: {policy} of {finished.run.folder}, {how}"]
    if hint := finished.missing():
        lines.append(hint)
    if voice.scorer is None:
        lines.append("no reward is shown: this run has no reward model")
    if finished.prompts:
        lines += ["a prompt looks like this:", *(f"    {line}" for line in _example(finished).splitlines())]
    if finished.prefix:
        lines.append(f"what you type goes in behind '{finished.prefix.strip()}', as in training")
    lines.append("it remembers the turns before" if finished.many_turns else "each prompt stands alone, as in training")
    return "\n".join([*lines, f"{commands(voice)}; a line that ends with \\ goes on in the next", ""])


def _example(finished: FinishedRun) -> str:
    turns = [message for message in finished.prompts[0] if message.role != "system"]
    if len(turns) == 1:
        return turns[0].content.removeprefix(finished.prefix)
    return "\n".join(f"{turn.role}: {turn.content}" for turn in turns)


def commands(voice: Voice) -> str:
    return COMMANDS.format("|".join(voice.finished.policies))


def _read(mark: str) -> str | None:
    """A line, or several where each but the last ends with a backslash; None at the end of the input."""
    lines: list[str] = []
    try:
        while True:
            lines.append(input("... " if lines else mark))
            if not lines[-1].endswith("\\"):
                return "\n".join([*(line[:-1] for line in lines[:-1]), lines[-1]])
    except (EOFError, KeyboardInterrupt):
        print()
        return None


def _switch(voice: Voice, name: str, policy: str) -> str:
    """The policy called `name`; where there is none, says so and stays with `policy`."""
    try:
        return voice.finished.policy(name)
    except UserError as error:
        say(str(error))
        return policy


def _turn(voice: Voice, policy: str, turns: Prompt, text: str) -> Prompt:
    """Answers, and returns the turns before the next prompt."""
    try:
        prompt, excess = _fit(voice, turns, question(voice.finished, text))
        if excess:
            print(f"({excess} turns are forgotten: {voice.window} tokens are the most)")
        answer = voice.answer(policy, (*voice.finished.system, *prompt), _print)
    except KeyboardInterrupt:
        print("\n  (stopped)")
        return turns
    except UserError as error:
        say(str(error))
        return turns
    print(f"\n{_dim('  ' + about(answer))}")
    return (*prompt, Message("assistant", answer.text)) if voice.finished.many_turns else ()


def _fit(voice: Voice, turns: Prompt, last: Message) -> tuple[Prompt, int]:
    """The last turn with as many before it as leave room for an answer, and how many of the oldest are dropped."""
    room = voice.window - (voice.finished.answer_length or 1)
    recent = turns
    while recent and len(encode_prompt(voice.tokenizer, (*voice.finished.system, *recent, last))) > room:
        recent = recent[2:]  # a question and its answer
    return (*recent, last), len(turns) - len(recent)


def question(finished: FinishedRun, text: str) -> Message:
    """A person's text as a message in the form that training has: with the recipe's prefix."""
    return Message("user", text if text.startswith(finished.prefix) else f"{finished.prefix}{text}")


def is_text(text: str) -> bool:
    """Whether it is UTF-8 text: Python reads other bytes as lone surrogates, which cannot be encoded."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def about(answer: Answer) -> str:
    """`reward +1.42, 9 tokens`"""
    reward = "" if answer.reward is None else f"reward {answer.reward:+.2f}, "
    return f"{reward}{answer.tokens} tokens{'' if answer.ended else ', cut off'}"


def _print(piece: str) -> None:
    """Prints a model's text without what would act on the terminal."""
    print(shown(piece), end="", flush=True)


def _dim(text: str) -> str:
    plain = not sys.stdout.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return text if plain else f"\033[2m{text}\033[0m"


# For scripts.


def answer_lines(voice: Voice, policy: str, lines: Iterator[str], as_json: bool) -> None:
    """One answer for each line that is not blank: the answer on standard output, its reward on standard error.

    With `as_json` a line is a JSON text, a list of messages or an object with a `prompt` that is one of those, and so is
    each line of output: `{"answer": "The child reads.", "reward": 1.42, "tokens": 5, "ended": true}`.

    Raises:
        UserError: a line cannot be read or is too long. By then the lines before it have their answers.
    """
    for number, line in _number_lines(lines):
        try:
            prompt = _prompt_of(_parse(line), voice.finished) if as_json else _single(voice.finished, line)
            answer = voice.answer(policy, prompt, (lambda _: None) if as_json else _write)
        except UserError as error:
            raise UserError(f"standard input, line {number}: {error}") from error
        if as_json:
            record = {"answer": answer.text, "reward": answer.reward, "tokens": answer.tokens, "ended": answer.ended}
            ascii_alone = not (sys.stdout.encoding or "").lower().startswith("utf")
            print(json.dumps(record, ensure_ascii=ascii_alone), flush=True)
        else:
            _write("\n")
            if answer.reward is not None:
                print(f"reward {answer.reward:+.2f}", file=sys.stderr, flush=True)


def _number_lines(lines: Iterator[str]) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, with their numbers from 1."""
    number = 0
    try:
        for number, line in enumerate(lines, 1):
            if text := (line.removeprefix(BOM) if number == 1 else line).strip():
                yield number, text
    except UnicodeDecodeError:
        raise UserError(f"standard input, line {number + 1} is not UTF-8 text; send UTF-8") from None


def _write(piece: str) -> None:
    sys.stdout.write(shown(piece) if sys.stdout.isatty() else piece)
    sys.stdout.flush()


def _single(finished: FinishedRun, text: str) -> Prompt:
    """A prompt of one question."""
    return (*finished.system, question(finished, text))


def _parse(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"this is not JSON ({error}); send one JSON text, list or object a line") from None


def _prompt_of(value: Any, finished: FinishedRun) -> Prompt:
    """A prompt from a JSON value: a text becomes a question, messages stay as they are.

    Raises:
        UserError: the value is neither, nor an object with such a `prompt`.
    """
    value = value.get("prompt") if isinstance(value, dict) else value
    if isinstance(value, str) and value.strip():
        return _single(finished, value)
    if _is_chat(value):
        return tuple(Message(turn["role"], turn["content"]) for turn in value)
    raise UserError("give a text, a list of messages that ends with the user's, or an object with such a 'prompt'")


def _is_chat(value: Any) -> bool:
    def is_turn(turn: Any) -> bool:
        return (
            isinstance(turn, dict)
            and turn.get("role") in ("system", "user", "assistant")
            and isinstance(turn.get("content"), str)
        )

    return isinstance(value, Sequence) and bool(value) and all(map(is_turn, value)) and value[-1]["role"] == "user"
