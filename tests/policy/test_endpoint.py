"""A language model behind an address judges pairs in both orders; dead, it costs the judge and nothing else."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from conftest import SMALLEST, main

from rlrecipes.policy import endpoint
from rlrecipes.policy.endpoint import ask, letter
from rlrecipes.profile import EvaluateSettings
from rlrecipes.recipe import Example, user


class StandIn:
    """An OpenAI-compatible server on this machine, which replies as `judge(first, second)` says."""

    def __init__(self, judge):
        self.questions, self.keys = [], []
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                text = asked["messages"][0]["content"]
                stand_in.questions.append((self.path, asked["model"], text))
                stand_in.keys.append(self.headers.get("Authorization"))
                first, second = text.split("[answer A]\n")[1].split("\n\nReply")[0].split("\n\n[answer B]\n")
                said = judge(first, second)
                self.send_response(200 if said else 500)
                self.end_headers()
                self.wfile.write(json.dumps({"choices": [{"message": {"content": said}}]}).encode() if said else b"")

            def log_message(self, *arguments):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error):
        self.server.shutdown()
        self.server.server_close()


def longer(first, second):
    return "**A**" if len(first) > len(second) else "B." if len(second) > len(first) else "C"


def settings(server):
    return EvaluateSettings(judge_url=server.url, judge_model="m")


EXAMPLES = [Example(user(f"Question {i}")) for i in range(4)]


def test_every_pair_is_asked_in_both_orders_and_equal_answers_are_a_tie(tmp_path, capsys):
    with StandIn(longer) as server:
        record, wins = ask(settings(server), EXAMPLES, ["aaa", "b", "cc", "same"], ["a", "bb", "dd", "same"], tmp_path)
    assert wins["value"] == (1 + 0 + 0.5 + 0.5) / 4
    assert len(server.questions) == record["asked"] == 6
    assert {question[:2] for question in server.questions} == {("/v1/chat/completions", "m")}
    assert "user: Question 0" in "".join(text for *_, text in server.questions)
    assert record["first"]["value"] == 0.5
    assert record["unclear"] == 0
    assert "6 questions to m" in capsys.readouterr().out


def test_a_judge_that_always_takes_the_first_prefers_nobody_and_its_bias_is_told(tmp_path):
    with StandIn(lambda first, second: "A") as server:
        record, wins = ask(settings(server), EXAMPLES, list("abcd"), list("efgh"), tmp_path)
    assert wins["value"] == 0.5
    assert record["first"]["value"] == 1


def test_what_was_answered_once_is_not_asked_again_even_if_the_file_is_cut(tmp_path):
    answers = (["aa", "b", "cc", "d"], ["a", "bb", "c", "dd"])
    with StandIn(longer) as server:
        once = ask(settings(server), EXAMPLES, *answers, tmp_path)
        again = ask(settings(server), EXAMPLES, *answers, tmp_path)
        assert len(server.questions) == 8
        assert again[1] == once[1]
        (kept,) = tmp_path.iterdir()
        kept.write_text(kept.read_text()[:-5])
        assert ask(settings(server), EXAMPLES, *answers, tmp_path)[1] == once[1]
        assert len(server.questions) == 9


def test_an_unclear_reply_is_a_tie_and_counted(tmp_path):
    with StandIn(lambda first, second: "hmm") as server:
        record, wins = ask(settings(server), EXAMPLES[:1], ["a"], ["b"], tmp_path)
    assert wins["value"] == 0.5
    assert record["unclear"] == 2


@pytest.mark.parametrize(("reply", "read"), [(" A\n", "A"), ("[[B]]", "B"), ("c.", "C"), ("", "")])
def test_a_letter_is_read_through_its_marks(reply, read):
    assert letter(reply) == read


def test_a_key_of_the_environment_is_sent(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    with StandIn(longer) as server:
        ask(settings(server), EXAMPLES[:1], ["a"], ["bb"], tmp_path)
    assert set(server.keys) == {"Bearer secret"}
    assert "secret" not in "".join(path.read_text() for path in tmp_path.iterdir())


def test_a_dead_endpoint_is_told_after_a_few_questions(tmp_path, monkeypatch):
    monkeypatch.setattr(endpoint, "AT_ONCE", 1)
    many = [Example(user(str(i))) for i in range(50)]
    with StandIn(lambda first, second: None) as server:
        record, wins = ask(settings(server), many, ["a"] * 50, ["b"] * 50, tmp_path)
    assert wins is None
    assert "did not answer (HTTPError: HTTP Error 500" in record["missing"]
    assert len(server.questions) == endpoint.FAILURES


def test_a_server_that_refuses_now_and_then_is_asked_once_more(tmp_path, monkeypatch):
    monkeypatch.setattr(endpoint, "AT_ONCE", 1)
    refused = []

    def now_and_then(first, second):
        return refused.append(first) if len(refused) < 2 else "A"

    with StandIn(now_and_then) as server:
        assert ask(settings(server), EXAMPLES, list("abcd"), list("efgh"), tmp_path)[1] is not None


def test_an_evaluation_has_the_endpoints_win_rate_and_survives_its_death(apart, home, capsys):
    road = ["run", "translation", "--run", "asked", "--data", "pairs.jsonl", *SMALLEST]
    road += ["evaluate.policies=sft runs/apart"]  # they say quite different things

    def evaluated(model, *more):
        assert main([*road, f"evaluate.judge_url={server.url}", f"evaluate.judge_model={model}", *more]) == 0
        done = (home / "runs" / "asked" / "translation" / "evaluate" / "done.json").read_text(encoding="utf-8")
        return json.loads(done)

    with StandIn(lambda first, second: "A") as server:
        alive = evaluated("m")
    assert server.questions
    assert alive["judge"]["pair"] == "runs/apart_over_sft"
    assert alive["comparisons"]["runs/apart_over_sft"]["judge_win_rate"]["value"] == 0.5
    assert not (home / "runs" / "asked" / "translation" / "judge").exists()

    dead = evaluated("another", "--force")
    assert "did not answer" in dead["judge"]["missing"]
    assert "did not answer" in capsys.readouterr().out
    assert dead["metrics"] == alive["metrics"]
    assert "judge_win_rate" not in dead["comparisons"]["runs/apart_over_sft"]
    assert evaluated("m", "--force")["comparisons"] == alive["comparisons"], "its replies are kept"
