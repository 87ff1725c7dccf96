"""Several reward models from other seeds score together: how they are trained, what PPO climbs, and where they disagree."""

import json

import pytest
import torch
from conftest import SMALLEST, main, write_rows
from safetensors.torch import load_file

from rlrecipes.errors import UserError
from rlrecipes.pipeline import prepare
from rlrecipes.profile import load_profile
from rlrecipes.reward.head import Ensemble, ScoreHead, combined, spread
from rlrecipes.reward.judge import judge_job
from rlrecipes.run.checkpoint import Checkpoints
from rlrecipes.run.folder import Run

SCORES = torch.tensor([[1.0, 0.0], [1.0, -2.0], [1.0, 5.0]])
SEVERAL = ("reward.seeds=3", "reward.combine=lcb", "reward.learning_rate=0.01")


def record(folder, stage):
    return json.loads((folder / stage / "done.json").read_text(encoding="utf-8"))


def run(name, *settings, command="run"):
    return main([command, "translation", "--run", name, "--data", "pairs.jsonl", *SMALLEST, *settings])


@pytest.fixture(scope="module")
def several(session_home):
    """`runs/several/translation`, whose reward stage has three members, and what the console said. Nobody may change it."""
    import contextlib
    import io

    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as out:
        patch.chdir(session_home)
        assert run("several", *SEVERAL) == 0
    return session_home / "runs" / "several" / "translation", out.getvalue()


@pytest.mark.parametrize(
    ("how", "expected"), [("mean", [1.0, 1.0]), ("min", [1.0, -2.0]), ("lcb", [1.0, 1.0 - (26 / 3) ** 0.5])]
)
def test_the_members_scores_become_their_mean_the_lowest_or_the_mean_less_their_deviation(how, expected):
    assert combined(SCORES, how).tolist() == pytest.approx(expected)
    assert spread(SCORES).tolist() == pytest.approx([0.0, (26 / 3) ** 0.5])


def test_each_member_reads_the_states_under_its_own_adapter_with_a_scale_of_its_own():
    torch.manual_seed(0)
    heads = [ScoreHead(torch.randn(1, 4), mean, std) for mean, std in ((0.5, 1.0), (-2.0, 3.0))]
    states = torch.randn(5, 8)
    together = Ensemble(heads, "min")
    each = torch.stack([heads[0](states[:, :4]), heads[1](states[:, 4:])])
    assert torch.equal(together(states), each.min(0).values)
    assert torch.allclose(together.disagreement(states), (each[0] - each[1]).abs() / 2)
    assert together.roles("reward") == ["reward", "reward1"]


def test_members_are_trained_on_the_same_rows_from_other_seeds_each_in_a_place_of_its_own(several):
    folder, said = several
    stage, done = folder / "reward", record(folder, "reward")
    assert [member["seed"] for member in done["members"]] == [0, 1, 2]
    places = [stage, stage / "member-1", stage / "member-2"]
    weights = [load_file(place / "adapter" / "adapter_model.safetensors") for place in places]
    for key in weights[0]:
        if "lora_B" in key or key.endswith("score.weight"):
            assert not torch.equal(weights[0][key], weights[1][key])
            assert not torch.equal(weights[1][key], weights[2][key])
    assert len({(place / "scale.json").read_text() for place in places}) == 3
    assert {"member-1/scale.json", "member-2/adapter/adapter_model.safetensors"} <= done["files"].keys()
    for number, member in enumerate(done["members"]):
        assert f"member {number} of 3, from seed {number}" in said
        assert f"member {number}: held-out accuracy {member['accuracy']['value']:.3f}" in said
    assert f"all together (lcb): {done['metrics']['accuracy']['value']:.3f}" in said


def test_the_first_member_has_the_bytes_of_a_single_reward_model(several, home):
    folder, _ = several
    assert run("single-member", "reward.learning_rate=0.01", command="sft") == 0
    assert run("single-member", "reward.learning_rate=0.01", command="reward") == 0
    single = home / "runs" / "single-member" / "translation" / "reward"
    for name in ("adapter/adapter_model.safetensors", "scale.json"):
        assert (folder / "reward" / name).read_bytes() == (single / name).read_bytes()
    assert record(single.parent, "reward")["metrics"]["accuracy"] == record(folder, "reward")["members"][0]["accuracy"]


def test_evaluation_scores_by_all_members_and_says_how_far_they_disagree(several, home):
    from rlrecipes.model.adapters import load_policies
    from rlrecipes.model.loading import load_causal
    from rlrecipes.model.tokens import open_tokenizer
    from rlrecipes.profile import ModelSettings
    from rlrecipes.recipe import Message
    from rlrecipes.reward.head import load_score_head
    from rlrecipes.reward.model import open_learned, score_answers

    folder, _ = several
    base = json.loads((folder / "sft" / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"]
    tokenizer = open_tokenizer(base)
    model = load_policies(load_causal(base, ModelSettings(), tokenizer), Run("several", "translation"), ["sft"])
    learned = open_learned(folder / "reward", model, tokenizer, ModelSettings(), 4)
    model.eval()
    rows = [json.loads(line) for line in (folder / "evaluate" / "samples.jsonl").read_text().splitlines()]
    pairs = [(tuple(Message(**turn) for turn in row["prompt"]), row["policies"]["ppo"]["answer"]) for row in rows]
    places = [folder / "reward", folder / "reward" / "member-1", folder / "reward" / "member-2"]
    roles = ["reward", "reward1", "reward2"]
    each = torch.tensor(
        [
            score_answers(model, load_score_head(place), tokenizer, pairs, 4, [role])
            for place, role in zip(places, roles, strict=True)
        ]
    )
    assert learned.score(pairs) == pytest.approx((each.mean(0) - each.std(0, correction=0)).tolist(), abs=1e-5)
    disagreement = each.std(0, correction=0).tolist()
    assert [row["policies"]["ppo"]["disagreement"] for row in rows] == pytest.approx(disagreement, abs=1e-5)
    comparisons = prepare(
        "translation", load_profile("tiny"), data="pairs.jsonl", run="several"
    ).data.held_out.comparisons
    sides = [[(pair.prompt, getattr(pair, side)) for pair in comparisons] for side in ("chosen", "rejected")]
    for member, place, role in zip(record(folder, "reward")["members"], places, roles, strict=True):
        head = load_score_head(place)
        scores = [score_answers(model, head, tokenizer, side, 4, [role]) for side in sides]
        wins = [chosen > rejected for chosen, rejected in zip(*scores, strict=True)]
        assert member["accuracy"]["value"] == pytest.approx(sum(wins) / len(wins))
    done = record(folder, "evaluate")
    for policy in ("sft", "ppo"):
        assert done["metrics"][policy]["disagreement"]["low"] > 0
    assert "disagreement_gain" in done["comparisons"]["ppo_over_sft"]


def test_every_update_of_ppo_logs_the_disagreement_and_the_report_shows_members_and_curve(several):
    folder, _ = several
    rows = [json.loads(line) for line in (folder / "ppo" / "log.jsonl").read_text().splitlines()]
    assert len(rows) == 2
    assert all(row["objective/disagreement"] > 0 for row in rows)
    page = (folder / "report" / "index.html").read_text(encoding="utf-8")
    assert "alone, from seed 2" in page
    assert "more disagreement of the reward models" in page
    assert "standard deviation of the reward models" in page


def test_a_single_reward_model_has_no_disagreement(finished):
    assert "disagreement" not in record(finished, "evaluate")["metrics"]["ppo"]
    assert "objective/disagreement" not in (finished / "ppo" / "log.jsonl").read_text()
    assert "members" not in record(finished, "reward")


@pytest.mark.parametrize("at", [1, 3, 4, 6, 9])
def test_an_interrupted_member_goes_on_and_those_before_it_are_not_trained_again(several, home, monkeypatch, at):
    """Two steps a member, and one more number for its end: member 1 has the checkpoints 4 to 6."""
    folder, _ = several
    real, saved, fatal = Checkpoints.save, [], [at]

    def save(self, step, state):
        real(self, step, state)
        if self.folder.parent.name == ".reward":
            saved.append(step)
            if step in fatal:
                raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoints, "save", save)
    name = f"cut-member-{at}"
    assert run(name, *SEVERAL, "checkpoint.seconds=0") == 75
    fatal.clear()
    assert run(name, *SEVERAL, "checkpoint.seconds=0", command="reward") == 0
    assert saved == [*range(1, 10)]
    cut = home / "runs" / name / "translation" / "reward"
    assert record(cut.parent, "reward")["resumed"]["step"] == at
    names = record(folder, "reward")["files"].keys()
    assert record(cut.parent, "reward")["files"].keys() == names
    for path in names:
        assert (cut / path).read_bytes() == (folder / "reward" / path).read_bytes() or path.endswith("log.jsonl")
    for key in ("metrics", "members", "warnings"):
        assert record(cut.parent, "reward")[key] == record(folder, "reward")[key]


def test_each_members_log_has_names_of_its_own_in_one_order_of_steps(home):
    assert run("member-log", *SEVERAL, "reward.logging_steps=1", command="sft") == 0
    assert run("member-log", *SEVERAL, "reward.logging_steps=1", command="reward") == 0
    lines = (home / "runs" / "member-log" / "translation" / "reward" / "log.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["step"] for row in rows] == [1, 2, 4, 5, 7, 8]
    assert ["loss" in row for row in rows] == [True, True, False, False, False, False]
    assert ["member1/loss" in row for row in rows] == [False, False, True, True, False, False]
    assert "member2/accuracy" in rows[-1]


def test_several_learn_from_ratings_too(home):
    rows = [{"prompt": f"Number {i}?", "completion": f"It is {i}.", "score": i % 5} for i in range(60)]
    write_rows(home / "several_rated.jsonl", rows)
    road = ["dialogue", "--run", "several-rated", "--data", "several_rated.jsonl", *SMALLEST, *SEVERAL]
    assert main(["sft", *road]) == 0
    assert main(["reward", *road]) == 0
    done = record(home / "runs" / "several-rated" / "dialogue", "reward")
    assert "spearman" in done["metrics"]
    assert all({"spearman", "pearson", "seed"} <= member.keys() for member in done["members"])


def test_the_judge_stays_a_single_model(home):
    job = prepare("translation", load_profile("tiny", list(SEVERAL)), data="pairs.jsonl", run="several-judge")
    assert judge_job(job).profile.reward.seeds == 1


def test_recipes_that_share_a_reward_model_share_one(home):
    with pytest.raises(
        UserError, match=r"reward\.seeds is for one recipe, not for translation\+dialogue; leave it out"
    ):
        prepare("translation+dialogue", load_profile("tiny", ["reward.seeds=2"]))


def test_how_scores_combine_is_shown_before_anything_runs(home, capsys):
    assert main(["show", "translation", "--data", "pairs.jsonl", *SEVERAL]) == 0
    assert "pairwise, the lcb of 3 models" in capsys.readouterr().out
