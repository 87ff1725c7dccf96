"""A talk is had with the policy that was asked for, as it was trained; a script gets one answer for each line."""

import dataclasses
import io
import json
import shutil
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import main, tiny_tokenizer

from rlrecipes.after import chat
from rlrecipes.after.chat import Stream, load_voice, talk
from rlrecipes.after.finished import find_finished_run
from rlrecipes.model.tokens import decode
from rlrecipes.recipe import Message, load_recipe
from rlrecipes.run.folder import Run

PROMPTS = ("Das Kind liest.", "Die Frau isst einen Apfel.", "Wer da?")


@pytest.fixture
def voice(home, apart):
    return load_voice(find_finished_run(Run("apart", "translation"), load_recipe("translation")), 0.0)


@pytest.fixture
def piped(home, apart, monkeypatch, capsys):
    """Sends lines to `chat` as a script does; returns exit status, standard output and standard error."""

    def run(text: str | bytes, *arguments: str, errors: str = "strict"):
        raw = text.encode() if isinstance(text, str) else text
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw), encoding="utf-8", errors=errors))
        status = main(["chat", "translation", "--run", "apart", *arguments])
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def typed(monkeypatch, capsys):
    """Types lines into a talk, `KeyboardInterrupt` being Ctrl-C, and Ctrl-D at the end; returns what it showed."""

    def run(voice, *lines, policy="ppo"):
        waiting = iter(lines)

        def read(mark):
            print(mark, end="")
            line = next(waiting, EOFError)
            if isinstance(line, type):
                raise line
            return line

        monkeypatch.setattr("builtins.input", read)
        monkeypatch.setattr("rlrecipes.after.chat.signal.signal", lambda *_: None)
        talk(voice, policy)
        return capsys.readouterr().out

    return run


def lines_of(answers):
    return [json.loads(line) for line in answers.splitlines()]


# Streaming.


def streamed(tokenizer, ids):
    pieces = []
    stream = Stream(tokenizer, pieces.append)
    for token in ids:
        stream.add(torch.tensor([token]))
    return pieces, stream.end()


@pytest.mark.parametrize("text", ["The child reads.", "孩子读信。", "naïve 🙂 ok", " a  b \n c ", "", "\ufffd?"])
def test_the_pieces_are_the_text_and_no_piece_is_half_a_character(text):
    tokenizer = tiny_tokenizer()  # a token for each byte
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    pieces, whole = streamed(tokenizer, [*ids, tokenizer.eos_token_id])
    assert "".join(pieces) == whole == decode(tokenizer, ids)
    assert all("\ufffd" not in piece for piece in pieces) or "\ufffd" in text


def test_a_character_is_shown_as_soon_as_it_is_whole():
    tokenizer = tiny_tokenizer()
    ids = tokenizer("孩子", add_special_tokens=False)["input_ids"]
    assert len(ids) == 6
    assert streamed(tokenizer, ids)[0] == ["孩", "子"]


def test_bytes_that_are_no_character_are_shown_in_the_end():
    tokenizer = tiny_tokenizer()
    ids = tokenizer("a孩", add_special_tokens=False)["input_ids"][:-1]
    pieces, whole = streamed(tokenizer, ids)
    assert pieces[0] == "a"
    assert "".join(pieces) == whole == decode(tokenizer, ids)
    assert "\ufffd" in whole


# For scripts.


def test_each_line_gets_its_answer_on_standard_output_and_its_reward_on_standard_error(piped):
    status, out, err = piped("\n".join(PROMPTS[:2]) + "\n\n")
    assert status == 0
    assert len(out.splitlines()) == len(err.splitlines()) == 2
    assert all(line.startswith("reward ") and float(line.split()[1]) for line in err.splitlines())


def test_policies_answer_differently_and_each_as_it_was_trained(piped, voice):
    asked = "".join(f"{json.dumps(text)}\n" for text in PROMPTS)
    given = {policy: lines_of(piped(asked, "--json", "--policy", policy)[1]) for policy in ("base", "sft", "ppo")}
    assert [row["answer"] for row in given["base"]] != [row["answer"] for row in given["sft"]]
    assert [row["answer"] for row in given["sft"]] != [row["answer"] for row in given["ppo"]]
    assert lines_of(piped(asked, "--json")[1]) == given["ppo"]
    assert all(row.keys() == {"answer", "reward", "tokens", "ended"} for row in given["ppo"])
    assert all(row["tokens"] <= 6 for row in given["ppo"]), "no longer than PPO's answers were"


def test_what_is_typed_goes_in_as_training_had_it(piped):
    """A plain text gets the recipe's words before it, unless they are there; messages are taken as they are."""
    asked = [
        PROMPTS[0],
        {"prompt": f"Translate: {PROMPTS[0]}"},
        {"prompt": [{"role": "user", "content": f"Translate: {PROMPTS[0]}"}]},
        [{"role": "user", "content": PROMPTS[0]}],
    ]
    given = lines_of(piped("".join(json.dumps(a) + "\n" for a in asked), "--json")[1])
    assert given[0] == given[1] == given[2]
    assert given[3] != given[0]


def test_the_answers_and_their_learned_rewards_are_those_of_the_evaluation(home, finished, monkeypatch, capsys):
    rows = [json.loads(line) for line in (finished / "evaluate" / "samples.jsonl").read_text().splitlines()]
    asked = "".join(json.dumps(row["prompt"]) + "\n" for row in rows)
    for policy in ("base", "ppo"):
        monkeypatch.setattr(sys, "stdin", io.StringIO(asked))
        assert main(["chat", "translation", "--run", "t", "--json", "--policy", policy]) == 0
        said, expected = lines_of(capsys.readouterr().out), [row["policies"][policy] for row in rows]
        assert [row["answer"] for row in said] == [given["answer"] for given in expected]
        learned = [given["reward"] - 0.3 * given["headline"] for given in expected]  # chrF is the other term
        assert len({round(score, 2) for score in learned}) > 1
        assert [row["reward"] for row in said] == pytest.approx(learned, abs=1e-3)


def test_at_a_temperature_answers_vary_with_the_seed_and_repeat_with_it(piped):
    first = piped("Wer da?\n" * 3, "--temperature", "1.5")
    assert len(set(first[1].splitlines())) > 1
    assert piped("Wer da?\n" * 3, "--temperature", "1.5") == first
    assert piped("Wer da?\n" * 3, "--temperature", "1.5", "--seed", "1") != first


@pytest.mark.parametrize(
    ("text", "arguments", "said"),
    [
        ('"a"\nb\n', ["--json"], "standard input, line 2"),
        ("[" * 100_000 + "\n", ["--json"], "not JSON"),
        ("[]\n", ["--json"], "list of messages that ends with the user's"),
        (r'[{"role": "user", "content": "\ud800 x"}]' + "\n", ["--json"], "not UTF-8 text"),
        ('{"text": "a"}\n', ["--json"], "'prompt'"),
        (b"gut\n\xff\xfe\n", [], "line 2: this is not UTF-8"),
        ("wort " * 3000 + "\n", [], "512 is the most"),
    ],
)
def test_a_line_that_cannot_be_answered_is_told_by_its_number(piped, text, arguments, said):
    status, _, err = piped(text, *arguments)
    assert status == 2
    assert said in err
    assert err.splitlines()[-1].startswith("error: standard input, line ")


def test_lines_before_one_that_is_no_text_are_answered_and_it_is_told_by_its_own_number(piped):
    status, out, err = piped(b"Wer da?\n\ngut\xff\n", errors="surrogateescape")
    assert status == 2
    assert len(out.splitlines()) == 1
    assert err.splitlines()[-1].startswith("error: standard input, line 3: this is not UTF-8 text")


def test_a_byte_order_mark_is_no_part_of_the_first_line(piped):
    for text, arguments in (("Wer da?\n", []), ('"Wer da?"\n', ["--json"])):
        assert piped(f"\ufeff{text}", *arguments) == piped(text, *arguments)


@pytest.mark.parametrize(
    "file",
    [
        "evaluate/samples.jsonl",
        "ppo/adapter/adapter_config.json",
        "ppo/adapter/adapter_model.safetensors",
        "reward/adapter/adapter_model.safetensors",
        "reward/scale.json",
    ],
)
def test_a_damaged_file_of_the_run_is_told_and_not_taken_for_a_fault_of_the_first_line(
    home, apart, monkeypatch, capsys, file
):
    broken = shutil.copytree(apart, home / "runs" / "broken" / "translation")
    (broken / file).write_text("{")
    monkeypatch.setattr(sys, "stdin", io.StringIO("Wer da?\n"))
    status = main(["chat", "translation", "--run", "broken"])
    shutil.rmtree(broken.parent)
    assert status == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: runs/broken/translation/{file} is damaged")
    assert err.count("\n") == 1
    assert "stage again" in err


# In the terminal.


def test_a_talk_shows_the_prompts_form_the_answer_and_its_reward(voice, typed):
    out = typed(voice, PROMPTS[0])
    example = voice.finished.prompts[0][-1].content.removeprefix("Translate: ")
    assert "translation: ppo of runs/apart/translation, greedy" in out
    assert f"    {example}\n" in out
    assert "behind 'Translate:'" in out
    assert "each prompt stands alone" in out
    shown = out.partition("ppo> ")[2].splitlines()
    expected = voice.answer("ppo", (Message("user", f"Translate: {PROMPTS[0]}"),), lambda _: None)
    assert shown[0] == expected.text
    assert shown[1].strip() == f"reward {expected.reward:+.2f}, 6 tokens, cut off"


def test_the_policy_can_be_changed_and_an_unknown_one_is_told(voice, typed):
    out = typed(voice, "/policy sft", "/policy pp0", "/plicy", "")
    assert out.count("sft> ") == 4
    assert "did you mean 'ppo'" in out
    assert "there is no /plicy; there are /policy base|sft|ppo, /clear, /quit" in out


def test_a_dialogue_is_shown_with_all_its_turns(voice):
    turns = (
        Message("system", "Be brief."),
        Message("user", "Hi"),
        Message("assistant", "Hello"),
        Message("user", "So"),
    )
    voice.finished.__dict__["prompts"] = [turns]
    assert "    user: Hi\n    assistant: Hello\n    user: So\n" in chat.opening(voice, "ppo")


@pytest.mark.parametrize("bad", ["gut\udcff", "/policy \udcff", "/\udcff"])
def test_a_typed_byte_that_is_no_text_is_told_and_the_talk_goes_on(voice, typed, bad):
    out = typed(voice, bad, PROMPTS[0])
    assert out.count("this is not UTF-8 text; check the terminal's or the file's encoding\n") == 1
    assert out.count("reward ") == 1


@pytest.mark.parametrize("end", ["/quit", KeyboardInterrupt, EOFError])
def test_quit_and_both_keys_leave(voice, typed, end):
    assert "never said" not in typed(voice, end, "never said")


def test_ctrl_c_stops_an_answer_and_the_talk_goes_on(voice, typed, monkeypatch):
    real = chat.sample
    calls = iter([True, False])

    def interrupted(*arguments, **options):
        if next(calls):
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(chat, "sample", interrupted)
    out = typed(voice, PROMPTS[0], PROMPTS[1])
    assert out.count("(stopped)") == 1
    assert out.count("reward ") == 1


def test_a_line_that_ends_with_a_backslash_goes_on_in_the_next(voice, typed, monkeypatch):
    heard = hear(voice, monkeypatch)
    typed(voice, "one\\", "two")
    assert [prompt[-1].content for prompt in heard] == ["Translate: one\ntwo"]


def hear(voice, monkeypatch):
    """The prompts that the policies are given, in order."""
    heard = []

    def answer(self, policy, prompt, on_text):
        heard.append(prompt)
        return chat.Answer(f"answer {len(heard)}", 2, True, None)

    monkeypatch.setattr(chat.Voice, "answer", answer)
    return heard


def test_a_dialogue_remembers_its_turns_until_it_is_cleared(voice, typed, monkeypatch):
    heard = hear(voice, monkeypatch)
    turns = [Message("user", "Hi"), Message("assistant", "Hello"), Message("user", "So")]
    voice.finished.__dict__["prompts"] = [tuple(turns)]
    typed(voice, "one", "two", "/clear", "three", "/policy sft", "four")
    assert [len(prompt) for prompt in heard] == [1, 3, 1, 1]
    assert heard[1] == (Message("user", "one"), Message("assistant", "answer 1"), Message("user", "two"))


def test_the_oldest_turns_are_forgotten_aloud_when_the_window_is_full(voice, typed, monkeypatch):
    heard = hear(voice, monkeypatch)
    voice.finished.__dict__["prompts"] = [(Message("user", "Hi"), Message("assistant", "Hello"), Message("user", "So"))]
    out = typed(dataclasses.replace(voice, window=60), *["wort " * 8] * 4)
    assert "turns are forgotten: 60 tokens are the most" in out
    assert len(heard[-1]) < 7
    assert heard[-1][-1].content == ("wort " * 8).strip()


def test_control_characters_of_an_answer_are_shown_and_do_not_act(capsys):
    chat._print("a\x1b[2Jb\nc\x9bd")
    assert capsys.readouterr().out == "a\\x1b[2Jb\nc\\x9bd"


def test_a_system_message_that_all_prompts_share_is_said_in_a_talk_too(voice, typed, monkeypatch):
    heard = hear(voice, monkeypatch)
    voice.finished.__dict__["prompts"] = [(Message("system", "Be brief."), Message("user", text)) for text in "ab"]
    typed(voice, "one")
    assert heard == [(Message("system", "Be brief."), Message("user", "one"))]


def test_without_a_reward_model_the_talk_says_so(voice, typed):
    silent = SimpleNamespace(**{**vars(voice), "scorer": None})
    assert "no reward is shown" in chat.opening(silent, "ppo")
