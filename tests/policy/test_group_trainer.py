"""RLOO and GRPO on the shared base learn as TRL's own trainers would, on a random Llama of two layers."""

import dataclasses
from collections import defaultdict
from itertools import combinations, count
from types import SimpleNamespace

import pytest
import torch
from conftest import scatter
from policy.trainings import BreakError, breaking_after, end_of, largest_difference, logged, trained
from transformers import set_seed
from trl import GRPOTrainer as PlainGRPO
from trl import RLOOTrainer as PlainRLOO

from rlrecipes.model.adapters import adapter, load_adapter
from rlrecipes.model.forward import trunk
from rlrecipes.model.loading import load_causal
from rlrecipes.model.shared import shared_states_at
from rlrecipes.model.tokens import encode_prompt, load_tokenizer
from rlrecipes.policy.group_trainer import GroupTrainer
from rlrecipes.policy.training import TRAINERS, arguments
from rlrecipes.policy.watch import Watch
from rlrecipes.profile import LOWEST_TEMPERATURE, GRPOSettings, ModelSettings, RLOOSettings
from rlrecipes.recipe import Example, Reward, Term, user
from rlrecipes.reward.head import load_score_head
from rlrecipes.run.checkpoint import Checkpoints

LENGTH = 6
EACH = 4
PROMPTS = [Example(user(f"Say {i:02}" + " again" * (i % 3)), ("it",)) for i in range(12)]
"""Different ones, some of the same length."""
SETTINGS = {
    kind.table: kind(
        total_episodes=16,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=1,
        num_generations=EACH,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        num_sample_generations=0,
    )
    for kind in (RLOOSettings, GRPOSettings)
}
PLAIN = {"rloo": PlainRLOO, "grpo": PlainGRPO}
BY_LENGTH = Term("brevity", lambda prompt, answer, example: -len(answer) / 4, weight=0.5)
LEARNED = Reward(learned=1.0, terms=(BY_LENGTH,))
UNLEARNED = Reward(learned=0.0, terms=(BY_LENGTH,))
ALGORITHMS = pytest.mark.parametrize("algorithm", ["rloo", "grpo"])


@pytest.fixture
def make(checkpoint, tmp_path):
    """Builds a trainer as the stages of the algorithms do."""

    def build(algorithm, reward=LEARNED, **settings) -> GroupTrainer:
        settings = dataclasses.replace(SETTINGS[algorithm], **settings)
        tokenizer = load_tokenizer(checkpoint.model)
        base = load_causal(str(checkpoint.model), ModelSettings(quantization="none", dtype="float32"), tokenizer)
        model = load_adapter(base, checkpoint.sft / "adapter", "policy")
        model = load_adapter(model, checkpoint.sft / "adapter", "reference")
        model = load_adapter(model, checkpoint.reward / "adapter", "reward")
        model.set_adapter("policy")
        if settings.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            model.enable_input_require_grads()
        set_seed(0)
        return TRAINERS[algorithm](
            args=arguments(settings, tmp_path, 0, LENGTH),
            model=model,
            tokenizer=tokenizer,
            prompts=[(example, encode_prompt(tokenizer, example.prompt)) for example in PROMPTS],
            reward=reward,
            head=load_score_head(checkpoint.reward) if reward.learned else None,
            settings=settings,
        )

    return build


def next_batch(trainer):
    return next(trainer._batches())


def ends_often(trainer, batch):
    """Makes a token that the policy often says its EOS, so that some answers end and some do not."""
    tokenizer = trainer.processing_class
    tokenizer.ends = ()  # TRL knows of none beside EOS
    said = trainer.roll_out(batch).response.flatten()
    for token in said.bincount().argsort(descending=True).tolist():
        if token not in tokenizer.all_special_ids:
            tokenizer.eos_token = tokenizer.convert_ids_to_tokens(token)
            return


# The same loss and gradient as TRL's.


ANSWERS = 32


def rolled_out(make, algorithm, **settings):
    """A trainer whose policy differs from its reference, with a batch of it and all that an update needs."""
    trainer = make(algorithm, **{"per_device_train_batch_size": ANSWERS, "temperature": 0.7} | settings)
    scatter(trainer.policy, "policy")
    batch = next_batch(trainer)
    ends_often(trainer, batch)
    rollout = trainer.roll_out(batch)
    assert 2 <= int(rollout.ended.sum()) <= len(rollout.answers) - 2, "answers that end, and others that do not"
    assert len(set(rollout.prompt_lengths.tolist())) > 1
    scores = trainer.score(rollout)[1]
    return trainer, rollout, scores


class Reference:
    """The reference as a model of its own, as TRL would have it."""

    def __init__(self, policy):
        self.policy = policy

    def __call__(self, **inputs):
        with adapter(self.policy, "reference"):
            return self.policy(**inputs)


LOGS = ("prompt", "completion", "rewards", "advantages")
SAME = (
    *("temperature", "num_generations", "beta", "mask_truncated_completions", "normalize_advantages"),
    *("loss_type", "scale_rewards", "importance_sampling_level"),
)
"""Settings that TRL's trainers hold under the profile's names."""


def plain(trainer, rollout, scores):
    """TRL's trainer as far as its losses go, with our answers in place of its generation and our scores as its reward."""
    settings = trainer.settings
    prompts = [row[:start].tolist() for row, start in zip(rollout.ids, rollout.prompt_lengths, strict=True)]
    answers = [row[:length].tolist() for row, length in zip(rollout.response, rollout.lengths, strict=True)]
    alone = SimpleNamespace(
        device="cpu",
        process_index=0,
        num_processes=1,
        is_main_process=True,
        gather=lambda values: values,
        reduce=lambda values, reduction: values,
    )
    theirs = object.__new__(PLAIN[settings.table])
    vars(theirs).update(
        args=SimpleNamespace(
            per_device_train_batch_size=len(answers),
            steps_per_generation=settings.mini_batches,
            gradient_accumulation_steps=1,
            gradient_checkpointing_kwargs=None,
            use_bias_correction_kl=False,
            delta=None,
        ),
        accelerator=alone,
        current_gradient_accumulation_steps=1,
        model=trainer.policy,
        ref_model=Reference(trainer.policy),
        processing_class=trainer.processing_class,
        _tokenizer=trainer.processing_class,
        _generate=lambda _: (prompts, answers, *([None] * (6 if settings.table == "grpo" else 1))),
        _calculate_rewards=lambda *_: scores[:, None],
        _metrics=defaultdict(lambda: defaultdict(list)),
        _logs={name: defaultdict(list) if name == "rewards" else [] for name in LOGS},
        _pending_extra_logs={},
        _pending_metrics={},
        reward_weights=torch.ones(1),
        reward_func_names=["reward"],
        reward_clip_range=None,
        multi_objective_aggregation="sum_then_normalize",
        model_kwarg_keys={"logits_to_keep"},
        pad_to_multiple_of=None,
        num_iterations=2,  # with one, GRPO's ratios would be 1 by definition
        max_completion_length=LENGTH,
        epsilon_low=settings.epsilon,
        epsilon_high=settings.epsilon if settings.epsilon_high is None else settings.epsilon_high,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        environment_factories=None,
        environments=None,
        tools=None,
        use_vllm=False,
        aux_loss_enabled=False,
        _entropy_bonus_enabled=False,
        **{name: getattr(settings, name) for name in SAME if hasattr(settings, name)},
    )
    return theirs


def their_batch(theirs):
    """What TRL's trainer makes of its answers before it learns from them."""
    theirs.model.train()
    return theirs._generate_and_score_completions([{"prompt": "ours"}] * theirs.args.per_device_train_batch_size)


def cut(inputs, rows):
    """Some rows of TRL's batch, which still knows how many tokens the whole had."""
    return {key: value if value.dim() == 0 else value[rows] for key, value in inputs.items()}


def their_step(theirs, trainer, parts):
    """The loss and gradients of parts of a batch that TRL accumulates, by the names of the policy's parameters."""
    trainer.model.train()
    theirs.current_gradient_accumulation_steps = len(parts)
    loss = sum(theirs._compute_loss(trainer.policy, part) for part in parts)
    parameters = dict(trainable(trainer))
    return loss.item(), dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))


def our_step(trainer, rollout, advantages, rows):
    """The loss and gradients of a mini-batch, and its statistics."""
    trainer.model.train()
    trainer.optimizer.zero_grad()
    statistics = trainer._accumulate(rollout, advantages, None, rows)
    gradients = {name: parameter.grad.clone() for name, parameter in trainable(trainer)}
    return float(statistics["loss/policy_avg"]), gradients, {key: float(value) for key, value in statistics.items()}


def trainable(trainer):
    return [(name, parameter) for name, parameter in trainer.model.named_parameters() if parameter.requires_grad]


def assert_same(ours, theirs):
    """Losses and gradients alike, up to what float32 rounds."""
    assert ours[0] == pytest.approx(theirs[0], abs=1e-5)
    assert all(gradient.abs().max() > 1e-3 for gradient in theirs[1].values())
    largest = max(gradient.abs().max().item() for gradient in theirs[1].values())
    assert largest_difference(ours[1], theirs[1]) < 1e-5 * max(1, largest)


def move(policy):
    """Moves the policy as far from where it sampled as brings some of its ratios beyond their bounds."""
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if ".policy." in name:
                parameter += 0.02 * torch.randn_like(parameter)


def assert_a_step_is_trls(make, algorithm, **settings):
    """After the policy has moved, and in micro-batches of several sizes."""
    trainer, rollout, scores = rolled_out(make, algorithm, **settings)
    advantages = trainer.estimate_advantages(rollout, scores).advantages
    theirs = plain(trainer, rollout, scores)
    inputs = their_batch(theirs)
    assert advantages[:, 0].tolist() == pytest.approx(inputs["advantages"].tolist(), abs=1e-4)
    move(trainer.policy)
    expected = their_step(theirs, trainer, [inputs])
    for size in (ANSWERS, 5):
        trainer.args.per_device_train_batch_size = size
        *ours, statistics = our_step(trainer, rollout, advantages, torch.arange(ANSWERS))
        assert_same(ours, expected)
        assert 0 < statistics["policy/clipfrac_avg"] < 1
    return statistics, {name: values[-1] for name, values in theirs._metrics["train"].items()}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("beta", [0.0, 0.3])
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "dapo"])
def test_a_step_of_grpo_is_that_of_trl(make, loss_type, level, beta, masked):
    statistics, theirs = assert_a_step_is_trls(
        make,
        "grpo",
        loss_type=loss_type,
        importance_sampling_level=level,
        beta=beta,
        mask_truncated_completions=masked,
    )
    if level == "token":
        assert statistics["policy/clipfrac_avg"] == pytest.approx(theirs["clip_ratio/region_mean"], abs=1e-5)


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("scale_rewards", ["group", "batch", "none"])
def test_a_step_of_grpo_is_that_of_trl_however_rewards_are_scaled_and_ratios_bounded(make, scale_rewards, level):
    settings = {"scale_rewards": scale_rewards, "importance_sampling_level": level}
    assert_a_step_is_trls(make, "grpo", epsilon=0.1, epsilon_high=0.3, **settings)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("beta", [0.0, 0.3])
@pytest.mark.parametrize("normalised", [False, True])
def test_a_step_of_rloo_is_that_of_trl(make, normalised, beta, masked):
    assert_a_step_is_trls(make, "rloo", normalize_advantages=normalised, beta=beta, mask_truncated_completions=masked)


def test_a_step_of_rloo_is_that_of_trl_with_ratios_that_may_rise_further_than_fall(make):
    assert_a_step_is_trls(make, "rloo", epsilon=0.1, epsilon_high=0.4)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "dapo"])
def test_a_step_of_grpo_is_that_of_trl_where_trl_accumulates_it(make, loss_type, masked):
    """`bnpo` is left out: TRL takes its mean over the tokens of each micro-batch, so that their size matters."""
    settings = {"loss_type": loss_type, "mask_truncated_completions": masked, "beta": 0.3}
    halves = {"per_device_train_batch_size": ANSWERS // 4, "gradient_accumulation_steps": 2, "steps_per_generation": 4}
    trainer, rollout, scores = rolled_out(make, "grpo", **settings, **halves)
    assert trainer.settings.mini_batches == 2
    advantages = trainer.estimate_advantages(rollout, scores).advantages
    theirs = plain(trainer, rollout, scores)
    theirs.args.steps_per_generation = 4
    inputs = their_batch(theirs)
    move(trainer.policy)
    for mini_batch in torch.randperm(ANSWERS).split(ANSWERS // 2):
        expected = their_step(theirs, trainer, [cut(inputs, rows) for rows in mini_batch.split(ANSWERS // 4)])
        *ours, _ = our_step(trainer, rollout, advantages, mini_batch)
        assert_same(ours, expected)


# Rollout.


@ALGORITHMS
@pytest.mark.parametrize("together", [3, 64])
def test_each_prompt_of_a_batch_is_answered_so_many_times_and_its_answers_stand_together(make, algorithm, together):
    trainer = make(algorithm, per_device_train_batch_size=24, local_rollout_forward_batch_size=together)
    batch = next_batch(trainer)
    rollout = trainer.roll_out(batch)
    groups = [rollout.examples[start : start + EACH] for start in range(0, 24, EACH)]
    assert all(example is group[0] for group in groups for example in group)
    asked = [PROMPTS[i].prompt[-1].content for i in batch["index"].tolist()]
    assert sorted(group[0].prompt[-1].content for group in groups) == sorted(asked)
    assert len({*asked}) == 6
    for example, row, start in zip(rollout.examples, rollout.ids, rollout.prompt_lengths, strict=True):
        assert row[:start].tolist() == encode_prompt(trainer.processing_class, example.prompt)
    assert len({*rollout.answers}) > 18, "they are drawn one by one"


@ALGORITHMS
def test_a_prompt_is_read_once_for_all_its_answers_in_every_pass(make, algorithm):
    trainer, rows = (
        make(algorithm, per_device_train_batch_size=16, gradient_accumulation_steps=2, total_episodes=32),
        [],
    )
    assert trainer.sampler.shares
    trunk(trainer.policy).register_forward_pre_hook(
        lambda _, args, given: rows.append(given["input_ids"].shape), with_kwargs=True
    )
    trainer.train()
    whole = [count for count, width in rows if width > 1]
    assert whole == [8] + [16 // EACH] * 2 * 3, "while sampling, under the reference, for the reward, and to learn"


@ALGORITHMS
def test_a_pass_takes_each_prompt_once_and_is_an_epoch(make, algorithm, monkeypatch):
    trainer, asked = make(algorithm, total_episodes=48), []
    roll_out = trainer.roll_out
    monkeypatch.setattr(trainer, "roll_out", lambda batch: asked.extend(batch["index"].tolist()) or roll_out(batch))
    trainer.train()
    assert sorted(asked) == list(range(12))
    assert logged(trainer, "episode")[-1] == 48
    assert logged(trainer, "epoch")[-1] == pytest.approx(1)


@ALGORITHMS
def test_there_is_no_value_function_and_no_pass_for_one(make, algorithm, monkeypatch):
    trainer, read_by = make(algorithm), []
    monkeypatch.setattr(
        "rlrecipes.policy.sampler.shared_states_at",
        lambda model, *rest: read_by.append(model.active_adapter) or shared_states_at(model, *rest),
    )
    rollout = trainer.roll_out(next_batch(trainer))
    assert rollout.values is None
    assert read_by == ["reference", "reward"]
    names = [name for name, _ in trainable(trainer)]
    assert names
    assert all(".policy." in name for name in names)
    assert len(trainer._trainable()) == len(names)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    moved = {name for name, p in trainer.model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {*names}
    assert not logged(trainer, "loss/value_avg")


# What is learned from a batch.


@ALGORITHMS
def test_answers_that_are_all_worth_the_same_teach_nothing(make, algorithm):
    same = Reward(learned=0.0, terms=(Term("constant", lambda prompt, answer, example: 1.0, weight=1.0),))
    trainer = make(algorithm, same, beta=0.0, missing_eos_penalty=0.0)
    before = trained(trainer)
    trainer.train()
    assert logged(trainer, "groups/flat") == [1, 1]
    assert logged(trainer, "groups/spread") == [0, 0]
    assert logged(trainer, "policy/grad_norm") == [0, 0]
    assert largest_difference(before, trained(trainer)) == 0


@ALGORITHMS
def test_the_groups_of_each_batch_are_measured(make, algorithm, monkeypatch):
    trainer, seen = make(algorithm), []
    score = trainer.score
    monkeypatch.setattr(trainer, "score", lambda rollout: seen.append(score(rollout)) or seen[-1])
    trainer.train()
    assert len(seen) == 2
    for number, (_, scores) in enumerate(seen):
        groups = scores.view(2, EACH)
        assert logged(trainer, "groups/spread")[number] == pytest.approx(groups.std(1).mean().item(), rel=1e-5)
        assert logged(trainer, "groups/best")[number] == pytest.approx(groups.amax(1).mean().item(), rel=1e-5)
        assert logged(trainer, "groups/flat")[number] == 0


@ALGORITHMS
def test_the_policy_that_sampled_has_ratios_of_one(make, algorithm):
    trainer = make(algorithm, num_iterations=4, learning_rate=1e-2)
    trainer.train()
    assert logged(trainer, "first/ratio") == pytest.approx([1, 1], abs=1e-5)
    assert logged(trainer, "first/clipfrac_avg") == [0, 0]
    assert logged(trainer, "policy/approxkl_avg")[0] > 1e-6


@ALGORITHMS
def test_a_batch_takes_as_many_steps_as_it_has_mini_batches_and_iterations(make, algorithm, monkeypatch):
    parts = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "steps_per_generation": 6}
    trainer, steps = make(algorithm, total_episodes=24, num_iterations=2, **parts), []
    step = trainer.optimizer.step
    monkeypatch.setattr(trainer.optimizer, "step", lambda: steps.append(step()))
    trainer.train()
    assert trainer.state.global_step == 1
    assert len(steps) == 6


@ALGORITHMS
@pytest.mark.parametrize("optim", ["adamw_torch", "sgd"])
def test_the_micro_batch_size_changes_nothing(make, algorithm, optim):
    rate = {"adamw_torch": 1e-3, "sgd": 1e-2}[optim]
    settings = {"optim": optim, "learning_rate": rate, "max_grad_norm": 1e6, "num_iterations": 2, "beta": 0.3}
    weights = []
    for size, accumulation in ((16, 1), (8, 2), (2, 8)):
        sizes = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulation}
        trainer = make(algorithm, total_episodes=32, **sizes, **settings)
        before = trained(trainer)
        trainer.train()
        weights.append(trained(trainer))
        assert largest_difference(before, weights[-1]) > 1e-3
    assert largest_difference(weights[0], weights[1]) < 1e-5
    assert largest_difference(weights[0], weights[2]) < 1e-5


@ALGORITHMS
def test_gradient_checkpointing_changes_nothing(make, algorithm):
    weights = []
    for checkpointing in (False, True):
        trainer = make(algorithm, gradient_checkpointing=checkpointing)
        trainer.train()
        weights.append(trained(trainer))
    assert largest_difference(*weights) < 1e-6


@ALGORITHMS
def test_where_only_answers_that_end_count_others_teach_nothing(make, algorithm):
    trainer, rollout, scores = rolled_out(make, algorithm, mask_truncated_completions=True, beta=0.3)
    unended = (~rollout.ended).nonzero()[:, 0]
    assert not trainer.learned(rollout)[unended].any()
    assert torch.equal(trainer.learned(rollout)[rollout.ended], ~rollout.padding[rollout.ended])
    advantages = trainer.estimate_advantages(rollout, scores).advantages
    move(trainer.policy)
    gradients = our_step(trainer, rollout, advantages, torch.arange(ANSWERS))[1]
    elsewhere = rollout.logprobs.clone()
    elsewhere[unended] -= 1.0
    changed = dataclasses.replace(rollout, logprobs=elsewhere)
    assert largest_difference(our_step(trainer, changed, advantages, torch.arange(ANSWERS))[1], gradients) == 0
    alone = our_step(trainer, rollout, advantages, unended)[1]
    assert all(not gradient.any() for gradient in alone.values())


@ALGORITHMS
def test_where_only_answers_that_end_count_and_none_does_the_policy_stays(make, algorithm, monkeypatch):
    trainer = make(algorithm, mask_truncated_completions=True, beta=0.3)
    scatter(trainer.policy, "policy")
    before, roll_out = trained(trainer), trainer.roll_out
    never = torch.zeros(8, dtype=torch.bool)
    monkeypatch.setattr(trainer, "roll_out", lambda batch: dataclasses.replace(roll_out(batch), ended=never))
    trainer.train()
    assert logged(trainer, "policy/grad_norm") == [0, 0]
    assert largest_difference(before, trained(trainer)) == 0


# Drawing until a batch can teach.

BY_LETTERS = Term(
    "letters",
    lambda prompt, answer, example: sum(map(ord, answer)) / 1e6 * (int(prompt[-1].content[4:6]) % 2),
    weight=1.0,
)
"""Tells the answers to every other prompt apart, and no others."""
HALF = Reward(learned=0.0, terms=(BY_LETTERS,))
CONSTANT = Reward(learned=0.0, terms=(Term("constant", lambda prompt, answer, example: 1.0, weight=1.0),))


def watched_updates(trainer, monkeypatch):
    """The rollouts and advantages that the trainer learns from, as it goes."""
    seen, update = [], trainer.update
    monkeypatch.setattr(trainer, "update", lambda *given: seen.append(given) or update(*given))
    return seen


@ALGORITHMS
def test_with_dynamic_sampling_only_prompts_whose_answers_differ_in_score_are_learned_from(
    make, algorithm, monkeypatch
):
    settings = {"total_episodes": 32, "missing_eos_penalty": 0.0, "eval_every": 0}
    trainer = make(algorithm, HALF, dynamic_sampling=True, **settings)
    asked, roll_out = [], trainer.roll_out
    monkeypatch.setattr(trainer, "roll_out", lambda batch: asked.append(batch["index"].tolist()) or roll_out(batch))
    seen = watched_updates(trainer, monkeypatch)
    trainer.train()
    assert len(seen) == 4
    for rollout, advantages, _ in seen:
        assert len(rollout.answers) == len(advantages) == 8
        groups = [rollout.examples[start : start + EACH] for start in (0, EACH)]
        assert all(example is group[0] for group in groups for example in group)
        assert all(int(group[0].prompt[-1].content[4:6]) % 2 for group in groups)
        for row, start, example in zip(rollout.ids, rollout.prompt_lengths, rollout.examples, strict=True):
            assert row[:start].tolist() == encode_prompt(trainer.processing_class, example.prompt)
    draws = logged(trainer, "groups/draws")
    assert sum(draws) == len(asked) > 4
    assert logged(trainer, "groups/missing") == [0] * 4
    assert trainer.state.episode == 8 * len(asked), "all that were drawn are counted"
    assert logged(trainer, "epoch")[-1] == pytest.approx(2 * len(asked) / 12)
    flat = sum(share * count for share, count in zip(logged(trainer, "groups/flat"), draws, strict=True))
    assert flat * 2 == sum(not index % 2 for batch in asked for index in batch), "they are measured over all draws"


@ALGORITHMS
def test_what_is_learned_from_several_draws_is_what_would_be_learned_from_a_batch_of_its_own(
    make, algorithm, monkeypatch
):
    more = {"normalize_advantages": True} if algorithm == "rloo" else {"scale_rewards": "batch"}
    trainer = make(algorithm, HALF, dynamic_sampling=True, missing_eos_penalty=0.0, eval_every=0, **more)
    scatter(trainer.policy, "policy")
    seen = watched_updates(trainer, monkeypatch)
    trainer.train()
    assert max(logged(trainer, "groups/draws")) > 1
    for rollout, advantages, _ in seen:
        scores = trainer.score(rollout)[1]
        trainer.args.kl_coef = trainer.settings.beta
        assert torch.equal(advantages, trainer.estimate_advantages(rollout, scores).advantages)


@ALGORITHMS
def test_where_every_prompt_teaches_dynamic_sampling_changes_nothing(make, algorithm):
    ends = []
    for dynamic in (False, True):
        trainer = make(algorithm, dynamic_sampling=dynamic)
        trainer.train()
        weights, logs, state = end_of(trainer)
        ends.append(
            (weights, [{k: v for k, v in row.items() if "draws" not in k and "missing" not in k} for row in logs])
        )
        rest = [{**state[1], "log_history": None}, *state[2:]]
        ends[-1] += (rest,)
    assert largest_difference(ends[0][0], ends[1][0]) == 0
    assert ends[0][1:] == ends[1][1:]
    assert logged(trainer, "groups/draws") == [1, 1]


@ALGORITHMS
def test_where_no_prompt_teaches_ten_draws_are_the_most_and_the_batch_is_of_those(make, algorithm, capsys, monkeypatch):
    trainer = make(algorithm, CONSTANT, dynamic_sampling=True, beta=0.0, missing_eos_penalty=0.0)
    seen, before = watched_updates(trainer, monkeypatch), trained(trainer)
    trainer.train()
    assert logged(trainer, "groups/draws") == [10, 10]
    assert logged(trainer, "groups/missing") == [1, 1]
    assert trainer.state.episode == 160
    assert [len(rollout.answers) for rollout, *_ in seen] == [8, 8]
    assert largest_difference(before, trained(trainer)) == 0
    assert "100% of the prompts had answers that all scored the same" in trainer.taught_nothing()[0]
    assert trainer.warnings() == [], "which says it already"
    assert capsys.readouterr().out.count("the reward gives all answers to each prompt of update 1 the same score") == 1


@ALGORITHMS
def test_a_run_with_dynamic_sampling_that_is_interrupted_ends_exactly_as_another(make, tmp_path, algorithm):
    settings = {"total_episodes": 64, "dynamic_sampling": True, "missing_eos_penalty": 0.0, "num_iterations": 2}
    whole = make(algorithm, HALF, **settings)
    whole.train()
    for update in (2, 5):
        with pytest.raises(BreakError):
            make(algorithm, HALF, **settings).train(breaking_after(update)(tmp_path, 0))
    resumed = make(algorithm, HALF, **settings)
    resumed.train(Checkpoints(tmp_path, 0))
    (weights, *rest), (expected, *expected_rest) = end_of(resumed), end_of(whole)
    assert largest_difference(weights, expected) == 0
    assert rest == expected_rest


# What is told of prompts that teach nothing.


@ALGORITHMS
def test_a_temperature_so_low_that_all_answers_to_a_prompt_are_the_same_is_told_and_kept(make, algorithm, capsys):
    trainer = make(algorithm, UNLEARNED, temperature=LOWEST_TEMPERATURE)
    trainer.train()
    said = capsys.readouterr().out
    assert said.count("all answers to each prompt of update 1 are the same, so they teach nothing") == 1
    assert f"raise {algorithm}.temperature ({LOWEST_TEMPERATURE:g})" in said
    (warning,) = trainer.taught_nothing()
    assert f"most of these answers were the same: raise {algorithm}.temperature" in warning


@ALGORITHMS
def test_a_reward_that_reads_the_prompt_alone_is_told_and_kept(make, algorithm, capsys):
    of_prompt = Term("prompt", lambda prompt, answer, example: float(prompt[-1].content[4:6]), weight=0.1)
    trainer = make(algorithm, Reward(learned=0.0, terms=(of_prompt,)), missing_eos_penalty=0.0)
    trainer.train()
    assert capsys.readouterr().out.count("gives all answers to each prompt of update 1 the same score") == 1
    (warning,) = trainer.taught_nothing()
    assert "100% of the prompts had answers that all scored the same" in warning
    assert "the answers differed: look at the reward's terms" in warning


@ALGORITHMS
def test_what_passes_by_a_term_of_the_reward_is_logged(make, algorithm):
    even = Term("even", lambda prompt, answer, example: float(len(answer) % 2 == 0), weight=1.0)
    trainer = make(algorithm, Reward(learned=0.0, terms=(even, BY_LENGTH)))
    trainer.train()
    assert logged(trainer, "pass/even@1") == logged(trainer, "terms/even")
    assert all(a >= b for a, b in zip(logged(trainer, "pass/even@4"), logged(trainer, "pass/even@1"), strict=True))
    assert not logged(trainer, "pass/brevity@1")


# KL.


@ALGORITHMS
def test_the_kl_weight_grows_above_the_target_and_shrinks_below(make, algorithm):
    settings = {"kl_target": 0.1, "kl_horizon": 100, "beta": 0.5, "total_episodes": 8}
    far = make(algorithm, **settings)
    scatter(far.policy, "policy", size=1.0)
    far.train()
    assert far.args.kl_coef == pytest.approx(0.5 * (1 + 0.2 * 8 / 100))
    near = make(algorithm, **settings)
    near.train()
    assert near.args.kl_coef == pytest.approx(0.5 * (1 - 0.2 * 8 / 100))


@ALGORITHMS
def test_the_next_update_is_weighed_by_the_kl_weight_as_it_was_adapted(make, algorithm):
    trainer, rollout, scores = rolled_out(make, algorithm, beta=0.0)
    found = []
    for weight in (0.0, 0.3):
        trainer.args.kl_coef = weight
        advantages = trainer.estimate_advantages(rollout, scores).advantages
        found.append(our_step(trainer, rollout, advantages, torch.arange(ANSWERS))[1])
    trainer = rolled_out(make, algorithm, beta=0.3)[0]
    advantages = trainer.estimate_advantages(rollout, scores).advantages
    expected = our_step(trainer, rollout, advantages, torch.arange(ANSWERS))[1]
    assert largest_difference(found[1], expected) == 0
    assert largest_difference(found[0], expected) > 1e-3


@ALGORITHMS
def test_without_a_target_the_kl_weight_stays(make, algorithm):
    trainer = make(algorithm, beta=0.5)
    trainer.train()
    assert logged(trainer, "kl_coef") == [0.5, 0.5]


@ALGORITHMS
def test_a_kl_above_its_stop_ends_the_run(make, algorithm):
    trainer = make(algorithm, kl_stop=0.1, total_episodes=80)
    scatter(trainer.policy, "policy", size=1.0)
    trainer.train()
    assert trainer.state.global_step == 1
    assert f"{algorithm}.kl_stop=0.1" in trainer.stopped


# The whole.


@ALGORITHMS
def test_the_policy_climbs_its_reward(make, algorithm):
    trainer = make(
        algorithm,
        UNLEARNED,
        total_episodes=32 * 30,
        per_device_train_batch_size=32,
        learning_rate=1e-2,
        beta=0.0,
        missing_eos_penalty=0.0,
    )
    trainer.train()
    scores = logged(trainer, "objective/scores")
    assert sum(scores[-3:]) / 3 > sum(scores[:3]) / 3 + 0.05


@ALGORITHMS
def test_an_interrupted_run_ends_exactly_as_an_uninterrupted_one(make, tmp_path, algorithm):
    """Thirteen updates: two passes over the prompts, and one batch more."""
    settings = {
        "total_episodes": 104,
        "num_iterations": 2,
        "kl_target": 1.0,
        "kl_horizon": 100,
        "lr_scheduler_type": "linear",
        "warmup_steps": 2,
    }
    whole = make(algorithm, **settings)
    whole.train()
    for update in (3, 6, 10):
        with pytest.raises(BreakError):
            make(algorithm, **settings).train(breaking_after(update)(tmp_path, 0))
    resumed = make(algorithm, **settings)
    resumed.train(Checkpoints(tmp_path, 0))
    (weights, *rest), (expected, *expected_rest) = end_of(resumed), end_of(whole)
    assert resumed.state.global_step == 13
    assert largest_difference(weights, expected) == 0
    assert rest == expected_rest


# Settings.

EFFECTS = {
    "total_episodes": ({}, 24),
    "per_device_train_batch_size": ({}, 4),
    "gradient_accumulation_steps": ({}, 2),
    "steps_per_generation": ({}, 2),
    "num_generations": ({}, 2),
    "num_iterations": ({}, 2),
    "dynamic_sampling": ({}, True),
    "local_rollout_forward_batch_size": ({}, 4),
    "dense_rollout": ({}, "always"),
    "temperature": ({}, 0.5),
    "learning_rate": ({}, 2e-3),
    "lr_scheduler_type": ({}, "linear"),
    "warmup_steps": ({"lr_scheduler_type": "linear"}, 1),
    "weight_decay": ({}, 0.5),
    "adam_epsilon": ({}, 0.1),
    "max_grad_norm": ({}, 1e-3),
    "optim": ({}, "sgd"),
    "gradient_checkpointing": ({}, True),
    "beta": ({}, 0.5),
    "kl_target": ({}, 1.0),
    "kl_horizon": ({"kl_target": 1.0}, 100),
    "kl_stop": ({"learning_rate": 0.02, "total_episodes": 32}, 0.1),
    "epsilon": ({"learning_rate": 0.02, "num_iterations": 3}, 0.01),
    "epsilon_high": ({"learning_rate": 0.02, "num_iterations": 3}, 2.0),
    "mask_truncated_completions": ({}, True),
    "missing_eos_penalty": ({}, 0.0),
    "reward_clip": ({}, 0.1),
    "eval_every": ({}, 1),
    "keep": ({}, "last"),
    "patience": ({"eval_every": 1, "total_episodes": 64}, 1),
    "num_sample_generations": ({}, 2),
}
"""A value of each setting of both tables that is not the usual one, and what must be said beside it."""
OF_ONE = {
    "rloo": {"normalize_advantages": ({}, True)},
    "grpo": {
        "loss_type": ({}, "grpo"),
        "scale_rewards": ({}, "none"),
        "importance_sampling_level": ({"num_iterations": 2}, "sequence"),
    },
}
ENDS = tuple(range(4, 260, 3))
"""So many of the tokens are ends that answers have several lengths."""
CHANGES = [(table, name, *change) for table in SETTINGS for name, change in (EFFECTS | OF_ONE[table]).items()]


@ALGORITHMS
def test_every_setting_of_the_algorithm_is_changed_once(algorithm):
    # the stage gives the judge to the watch, and `anyway` comes before
    fields = {field.name for field in dataclasses.fields(SETTINGS[algorithm])}
    assert {name for table, name, *_ in CHANGES if table == algorithm} | {"judge", "anyway"} == fields


@pytest.fixture(scope="module")
def outcomes():
    """What trainings ended with, by their algorithm and settings."""
    return {}


@pytest.mark.parametrize(("algorithm", "name", "beside", "value"), CHANGES, ids=[f"{c[0]}.{c[1]}" for c in CHANGES])
def test_a_setting_that_is_changed_changes_what_is_trained_logged_or_shown(
    make, outcomes, algorithm, name, beside, value
):
    def outcome(**settings):
        if (key := (algorithm, *settings.items())) not in outcomes:
            trainer, shown, looks = make(algorithm, **settings), [], count()
            trainer.processing_class.ends = ENDS
            trainer.samples = slice = [(PROMPTS[0], trainer.prompts[0])]  # of its looks the first is the best
            trainer.on_samples = lambda rows, step: shown.append((step, rows))
            trainer.watch = Watch(slice, lambda answer, example: -next(looks), UNLEARNED, None, trainer.settings)
            trainer.train()
            weights, logs, _ = end_of(trainer)
            plain = {number: tensor.tolist() for number, tensor in weights.items()}
            outcomes[key] = (plain, logs, trainer.stopped, shown, trainer.policy.is_gradient_checkpointing)
        return outcomes[key]

    assert outcome(**beside) != outcome(**beside, **{name: value})


@pytest.mark.parametrize(
    ("name", "choices"),
    [("loss_type", ["dapo", "grpo", "bnpo", "dr_grpo"]), ("scale_rewards", ["group", "batch", "none"])],
)
def test_every_choice_of_a_setting_is_a_training_of_its_own(make, name, choices):
    """In two mini-batches of answers of several lengths, where `dapo` and `bnpo` differ."""
    ends = []
    for choice in choices:
        trainer = make("grpo", gradient_accumulation_steps=1, steps_per_generation=2, optim="sgd", **{name: choice})
        trainer.processing_class.ends = ENDS
        trainer.train()
        ends.append(trained(trainer))
    assert all(largest_difference(one, other) > 0 for one, other in combinations(ends, 2))
