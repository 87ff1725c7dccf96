"""Every kind of reward model takes the road from data to an evaluated policy: rated, with margins, shared, from elsewhere."""

import io
import json

import pytest
from conftest import SMALLEST, main, sentences, write_rows
from families import gpt2

from rlrecipes.profile import load_profile
from rlrecipes.recipe import Message
from rlrecipes.reward.head import load_scale
from rlrecipes.reward.model import RewardModel, load_beside
from rlrecipes.reward.source import find_reward_model
from rlrecipes.run.checkpoint import Checkpoints

TAKEN = tuple(setting for setting in SMALLEST if not setting.startswith("reward."))
"""The smallest road without the settings of a training that does not take place."""


def record(folder, stage):
    return json.loads((folder / stage / "done.json").read_text(encoding="utf-8"))


def rated(count, score=lambda i: i % 5):
    """One answer a prompt, and the better the more often it says `well`."""
    return [
        {"prompt": f"Say {i}.", "completion": f"It is {'well ' * score(i)}{i}.", "score": 10 * score(i)}
        for i in range(count)
    ]


def interrupted(monkeypatch, stage, *arguments):
    """The command, killed when the stage has saved its first checkpoint."""
    real = Checkpoints.save

    def save(self, step, state):
        real(self, step, state)
        if self.folder.parent.name == f".{stage}":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save)
        assert main([*arguments, "checkpoint.seconds=0"]) == 75


def same_bytes(left, right):
    names = sorted(path.relative_to(left) for path in left.rglob("*.safetensors"))
    assert names == sorted(path.relative_to(right) for path in right.rglob("*.safetensors"))
    return all((left / name).read_bytes() == (right / name).read_bytes() for name in names)


def test_ratings_alone_go_all_the_way_and_an_interrupted_regression_ends_with_the_same_bytes(home, monkeypatch, capsys):
    write_rows(home / "rated.jsonl", rated(80))
    road = ("run", "translation", "--data", "rated.jsonl", *SMALLEST)
    assert main([*road, "--run", "rated"]) == 0
    folder, again = (home / "runs" / name / "translation" for name in ("rated", "rated-again"))
    done = record(folder, "reward")
    assert done["objective"] == "regression"
    assert done["data"]["kept"]["ratings"] + done["data"]["kept"]["held_out_ratings"] == 80
    for name in ("spearman", "pearson"):
        found = done["metrics"][name]
        assert -1 <= found["low"] <= found["value"] <= found["high"] <= 1
    assert "accuracy" not in done["metrics"]
    assert "Spearman" in (folder / "report" / "index.html").read_text(encoding="utf-8")

    interrupted(monkeypatch, "reward", *road, "--run", "rated-again")
    capsys.readouterr()
    assert main([*road, "--run", "rated-again"]) == 0
    assert "going on after step 1" in capsys.readouterr().out
    assert same_bytes(folder, again)
    assert record(again, "evaluate")["metrics"] == record(folder, "evaluate")["metrics"]


def test_regression_learns_what_the_ratings_say_whatever_their_scale(home):
    write_rows(home / "rated.jsonl", rated(80))
    settings = ("reward.max_steps=60", "reward.learning_rate=0.01", "reward.per_device_train_batch_size=16")
    road = ("translation", "--run", "learns", "--data", "rated.jsonl", *SMALLEST, *settings)
    assert main(["sft", *road]) == 0
    assert main(["reward", *road]) == 0
    done = record(home / "runs" / "learns" / "translation", "reward")
    assert done["metrics"]["spearman"]["low"] > 0.5
    assert done["targets"]["translation"]["mean"] == pytest.approx(20, abs=3)


def test_the_size_of_a_micro_batch_does_not_change_the_regression_loss(home):
    write_rows(home / "rated.jsonl", rated(80))
    losses = []
    for size, times in ((8, 1), (2, 4)):
        batch = (f"reward.per_device_train_batch_size={size}", f"reward.gradient_accumulation_steps={times}")
        settings = (*batch, "reward.max_steps=1", "lora.lora_dropout=0")
        road = ("translation", "--run", f"micro-{size}", "--data", "rated.jsonl", *SMALLEST, *settings)
        assert main(["sft", *road]) == 0
        assert main(["reward", *road]) == 0
        log = home / "runs" / f"micro-{size}" / "translation" / "reward" / "log.jsonl"
        losses.append(record(log.parent.parent, "reward")["metrics"]["train_loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_margins_are_learnt_where_the_data_have_them(home):
    pairs = [row | {"rejected": "Kind."} for row in sentences(60)]
    adapters, counts = {}, {}
    for name, rows in {
        "none": pairs,
        "zero": [row | {"margin": 0} for row in pairs],
        "some": [row | {"margin": 3 if i % 2 else None} for i, row in enumerate(pairs)],
    }.items():
        write_rows(home / f"{name}.jsonl", rows)
        road = ("translation", "--run", f"margins-{name}", "--data", f"{name}.jsonl", *SMALLEST)
        assert main(["sft", *road]) == 0
        assert main(["reward", *road]) == 0
        folder = home / "runs" / f"margins-{name}" / "translation"
        adapters[name] = (folder / "reward" / "adapter" / "adapter_model.safetensors").read_bytes()
        done = record(folder, "reward")
        counts[name] = done.get("margins"), done["data"]["kept"]["comparisons"]
    assert counts["none"][0] is None
    assert counts["zero"][0] == counts["zero"][1], "0 is a margin too"
    assert counts["some"][0] == pytest.approx(counts["some"][1] / 2, rel=0.3), "every second row has one"
    assert adapters["none"] == adapters["zero"]
    assert adapters["none"] != adapters["some"]


@pytest.fixture(scope="module")
def shared(session_home):
    """`runs/shared/`: a reward model of two recipes, beside the single-task one of one of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(session_home)
        write_rows(session_home / "chats.jsonl", [{"dialog": [f"Hello, I am {i}.", f"Hello, {i}."]} for i in range(30)])
        alone = ("translation", "--run", "shared", "--data", "pairs.jsonl", *SMALLEST)
        assert main(["sft", *alone]) == 0
        assert main(["reward", *alone]) == 0
        sources = ("--data", "pairs.jsonl+chats.jsonl")
        assert main(["reward", "translation+dialogue", "--run", "shared", *sources, *SMALLEST]) == 0
    return session_home / "runs" / "shared"


def test_recipes_that_share_a_reward_model_are_each_measured_beside_their_own(shared):
    done = record(shared / "translation+dialogue", "reward")
    assert done["recipes"].keys() == {"translation", "dialogue"}
    for found in done["recipes"].values():
        assert found["shared"]["accuracy"].keys() == {"value", "low", "high"}
    assert done["recipes"]["translation"]["single"] == record(shared / "translation", "reward")["metrics"]
    assert done["recipes"]["dialogue"]["single"] == {}
    assert done["data"]["source"] == "pairs.jsonl+chats.jsonl"


def test_recipes_have_an_equal_share_of_a_shared_reward_model(shared, capsys, monkeypatch):
    monkeypatch.chdir(shared.parent.parent)
    sources = ("--data", "pairs.jsonl+chats.jsonl")
    capsys.readouterr()
    assert main(["reward", "translation+dialogue", "--run", "shared", *sources, *SMALLEST, "--force"]) == 0
    most = record(shared / "translation", "reward")["data"]["kept"]["comparisons"]
    assert f"on {2 * most} comparisons" in capsys.readouterr().out


def test_a_shared_reward_model_is_used_by_a_recipe_as_one_more_adapter(shared, home, capsys):
    model = shared / "translation+dialogue" / "reward"
    road = ("run", "translation", "--run", "uses", "--data", "pairs.jsonl", *TAKEN, f"reward.model={model}")
    assert main(road) == 0
    assert "one more adapter" in capsys.readouterr().out
    folder = home / "runs" / "uses" / "translation"
    assert same_bytes(folder / "reward", model)
    done = record(folder, "reward")
    assert done["reward_model"] == {"name": str(model), "beside": None}
    expected = record(model.parent, "reward")["recipes"]["translation"]["shared"]["accuracy"]["value"]
    assert done["metrics"]["accuracy"]["value"] == pytest.approx(expected, abs=0.05)
    assert record(folder, "ppo")["adapters"]["reward"] == "../reward/adapter"
    assert "terms/learned" in record(folder, "ppo")["metrics"]


def learned_rewards(folder, model):
    """What an evaluation gave each answer of each policy beside chrF, and what the model says of it, standardised."""
    beside = load_beside(find_reward_model(model), load_profile("tiny").model)
    mean, std = load_scale(folder / "reward")
    found = []
    for line in (folder / "evaluate" / "samples.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        prompt = tuple(Message(**message) for message in row["prompt"])
        for given in row["policies"].values():
            (raw,) = beside.scores([beside.cut(beside.encode(prompt, given["answer"]))], 1)
            found.append((given["reward"] - 0.3 * given["headline"], (raw - mean) / std))
    return found


@pytest.mark.parametrize("value", ["trunk", "adapter"])
def test_a_classifier_beside_the_base_rewards_ppo_and_an_interruption_changes_nothing(
    home, tmp_path, monkeypatch, capsys, value
):
    model = gpt2(tmp_path / "rm")
    name = f"beside-{value}"
    settings = (*TAKEN, f"reward.model={model}", f"ppo.value={value}")
    road = ("run", "translation", "--data", "pairs.jsonl", *settings)
    assert main([*road, "--run", name]) == 0
    assert "loaded beside the base" in capsys.readouterr().out
    folder = home / "runs" / name / "translation"
    done = record(folder, "reward")
    assert done["reward_model"] == {"name": str(model), "beside": str(model)}
    assert done["metrics"]["held_out_comparisons"]
    assert not (folder / "reward" / "adapter").exists()
    assert "reward" not in record(folder, "ppo")["adapters"]
    log = [json.loads(line) for line in (folder / "ppo" / "log.jsonl").read_text().splitlines()]
    assert len({row["terms/learned"] for row in log}) == 2
    learned = learned_rewards(folder, str(model))
    assert max(given for given, _ in learned) - min(given for given, _ in learned) > 0.1
    assert [given for given, _ in learned] == pytest.approx([alone for _, alone in learned], abs=1e-3)
    monkeypatch.setattr("sys.stdin", io.StringIO("Say it\n"))
    capsys.readouterr()
    assert main(["chat", "translation", "--run", name]) == 0
    assert "reward " in capsys.readouterr().err
    interrupted(monkeypatch, "ppo", *road, "--run", f"{name}-again")
    assert main([*road, "--run", f"{name}-again"]) == 0
    assert same_bytes(folder, home / "runs" / f"{name}-again" / "translation")

    assert main(["export", "translation", "--run", name]) == 0
    card = (folder / "export" / "README.md").read_text(encoding="utf-8")
    assert "| reward model | `rm`, taken as it was |" in card
    assert str(tmp_path) not in card


def test_a_model_beside_that_gives_nan_is_told_and_leaves_nothing(home, tmp_path, capsys):
    from safetensors.torch import load_file, save_file

    model = gpt2(tmp_path / "rm")
    weights = load_file(model / "model.safetensors")
    save_file(
        {**weights, "score.weight": weights["score.weight"] * float("nan")},
        model / "model.safetensors",
        {"format": "pt"},
    )
    road = ("run", "translation", "--run", "nan", "--data", "pairs.jsonl", *TAKEN, f"reward.model={model}")
    assert main(road) == 2
    assert "the reward model gives NaN" in capsys.readouterr().err
    assert sorted(path.name for path in (home / "runs" / "nan" / "translation").iterdir()) == ["settings.toml", "sft"]


def test_a_runs_own_reward_model_is_not_taken_since_making_it_again_would_remove_it(shared, home, capsys):
    own = home / "runs" / "shared" / "translation" / "reward"
    road = ("run", "translation", "--run", "shared", "--data", "pairs.jsonl", *TAKEN, f"reward.model={own}", "--force")
    assert main(road) == 2
    assert "is in this run" in capsys.readouterr().err
    assert (own / "done.json").is_file()


def test_as_many_texts_are_scored_together_as_a_training_step_would_read(home, tmp_path, monkeypatch):
    inner, sizes = RewardModel.scores, set()

    def scores(self, rows, batch_size):
        sizes.add(batch_size)
        return inner(self, rows, batch_size)

    monkeypatch.setattr(RewardModel, "scores", scores)
    road = (
        "translation",
        "--run",
        "together",
        "--data",
        "pairs.jsonl",
        *TAKEN,
        f"reward.model={gpt2(tmp_path / 'rm')}",
    )
    assert main(["sft", *road]) == 0
    assert main(["reward", *road, "reward.per_device_train_batch_size=3"]) == 0
    assert sizes == {6}


def test_scores_of_a_model_beside_are_standardised_over_the_demonstrations(home, tmp_path):
    model = gpt2(tmp_path / "rm")
    road = ("translation", "--run", "scaled", "--data", "pairs.jsonl", *TAKEN, f"reward.model={model}")
    assert main(["sft", *road]) == 0
    assert main(["reward", *road]) == 0
    import statistics

    from rlrecipes.job import make_job
    from rlrecipes.reward.model import open_learned
    from rlrecipes.run.folder import Run

    profile = load_profile("tiny", [f"reward.model={model}"])
    data = make_job("translation", profile, Run("scaled", "translation"), source="pairs.jsonl").data
    _, score, _ = open_learned(home / "runs" / "scaled" / "translation" / "reward", None, None, profile.model, 8)
    found = score([(example.prompt, example.answers[0]) for example in data.train.demonstrations])
    assert statistics.fmean(found) == pytest.approx(0, abs=1e-3)
    assert statistics.pstdev(found) == pytest.approx(1, abs=1e-3)
