"""The PPO update does what its formulas say, on a random Llama of two layers."""

import dataclasses
import math
import time
from itertools import count

import pytest
import torch
from conftest import scatter
from peft import PeftModel
from policy.trainings import BreakError, breaking_after, end_of, largest_difference, logged, trained
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, set_seed
from transformers import TrainerCallback as Callback

from rlrecipes.errors import UserError
from rlrecipes.model.adapters import adapter, load_adapter
from rlrecipes.model.dense import dense
from rlrecipes.model.forward import states_at
from rlrecipes.model.loading import load_causal
from rlrecipes.model.tokens import decode, encode_prompt, load_tokenizer
from rlrecipes.policy.ppo_trainer import SharedBasePPOTrainer
from rlrecipes.policy.rollout import places_before
from rlrecipes.policy.training import arguments
from rlrecipes.policy.watch import Watch
from rlrecipes.profile import ModelSettings, PPOSettings
from rlrecipes.recipe import Example, Message, Reward, Term, user
from rlrecipes.report.hacking import hacking
from rlrecipes.reward.head import load_score_head
from rlrecipes.run.checkpoint import Checkpoints

LENGTH = 6
PROMPTS = [Example(user("Say it" + " again" * (i % 3)), ("it",)) for i in range(64)]
SETTINGS = PPOSettings(
    total_episodes=16,
    per_device_train_batch_size=8,
    gradient_accumulation_steps=1,
    learning_rate=1e-3,
    lr_scheduler_type="constant",
    num_sample_generations=0,
)
BY_LENGTH = Term("brevity", lambda prompt, answer, example: -len(answer) / 4, weight=0.5)
LEARNED = Reward(learned=1.0, terms=(BY_LENGTH,))
PLACEMENTS = pytest.mark.parametrize("value", ["trunk", "adapter"])
UNLEARNED = Reward(learned=0.0, terms=(BY_LENGTH,))


@pytest.fixture
def make(checkpoint, tmp_path):
    """Builds a trainer as the ppo stage does."""

    def build(reward=LEARNED, quantization="none", dtype="float32", **settings) -> SharedBasePPOTrainer:
        settings = dataclasses.replace(SETTINGS, **settings)
        tokenizer = load_tokenizer(checkpoint.model)
        base = load_causal(str(checkpoint.model), ModelSettings(quantization=quantization, dtype=dtype), tokenizer)
        model = load_adapter(base, checkpoint.sft / "adapter", "policy")
        model = load_adapter(model, checkpoint.sft / "adapter", "reference")
        model = load_adapter(model, checkpoint.reward / "adapter", "reward")
        if settings.value == "adapter":
            model = load_adapter(model, checkpoint.reward / "adapter", "value")
        model.set_adapter("policy")
        if settings.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            model.enable_input_require_grads()
        set_seed(0)
        return SharedBasePPOTrainer(
            args=arguments(settings, tmp_path, 0, LENGTH),
            model=model,
            tokenizer=tokenizer,
            prompts=[(example, encode_prompt(tokenizer, example.prompt)) for example in PROMPTS],
            reward=reward,
            head=load_score_head(checkpoint.reward) if reward.learned else None,
            settings=settings,
        )

    return build


def watched(trainer, headline) -> Watch:
    """A watch over three prompts, under the reward of its length alone."""
    slice = [(example, encode_prompt(trainer.processing_class, example.prompt)) for example in PROMPTS[:3]]
    return Watch(slice, headline, UNLEARNED, None, trainer.settings)


def first_batch(trainer):
    return trainer.roll_out(next(trainer._batches()))


def everything(trainer) -> dict[str, torch.Tensor]:
    state = {**dict(trainer.model.named_parameters()), **dict(trainer.model.named_buffers())}
    return {name: tensor.detach().clone() for name, tensor in state.items()}


# Rollout: what the shared base says is what separate models would say.


def log_probabilities(model, ids, context, temperature):
    """Of one sequence without padding, by nothing but Transformers."""
    with torch.no_grad():
        logits = model(input_ids=ids[None]).logits[0, :-1].float() / temperature
    return logits.log_softmax(-1).gather(1, ids[1:, None])[context - 1 :, 0]


@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.0])
def test_log_probabilities_are_those_of_each_model_alone_on_the_sequence_alone(make, checkpoint, temperature):
    trainer = make(temperature=temperature)
    scatter(trainer.policy, "policy")
    rollout = first_batch(trainer)
    pad = trainer.processing_class.pad_token_id
    assert len(set(rollout.prompt_lengths.tolist())) > 1, "prompts of one length prove little"
    base = AutoModelForCausalLM.from_pretrained(checkpoint.model).eval()
    reference = PeftModel.from_pretrained(base, checkpoint.sft / "adapter").eval()
    for i, row in enumerate(rollout.ids):
        ids = row[row != pad]
        answer = int(rollout.lengths[i])
        alone = log_probabilities(reference, ids, len(ids) - answer, temperature)
        assert rollout.reference_logprobs[i, :answer].tolist() == pytest.approx(alone.tolist(), abs=1e-3)
        policy = log_probabilities(trainer.policy, ids, len(ids) - answer, temperature)
        assert rollout.logprobs[i, :answer].tolist() == pytest.approx(policy.tolist(), abs=1e-3)
    assert (rollout.logprobs - rollout.reference_logprobs).abs().max() > 0.1


def test_the_learned_score_is_the_reward_models_own_at_the_end_of_the_answer(make, checkpoint):
    trainer = make()
    rollout = first_batch(trainer)
    pad = trainer.processing_class.pad_token_id
    base = AutoModelForSequenceClassification.from_pretrained(checkpoint.model, num_labels=1)
    base.config.pad_token_id = pad
    model = PeftModel.from_pretrained(base, checkpoint.reward / "adapter").eval()
    terms, _ = trainer.score(rollout)
    for row, score in zip(rollout.ids, terms["learned"].tolist(), strict=True):
        with torch.no_grad():
            raw = model(input_ids=row[row != pad][None]).logits.item()
        assert score == pytest.approx((raw - 0.25) / 0.5, abs=1e-3)


def test_a_reward_model_beside_is_asked_for_each_answer_with_its_own_prompt(make):
    trainer = make()
    rollout = first_batch(trainer)
    trainer.head = None  # a model beside leaves none on the base
    trainer.scorer = lambda pairs: [float(len(prompt[-1].content) + 100 * len(answer)) for prompt, answer in pairs]
    pairs = [(example.prompt, answer) for example, answer in zip(rollout.examples, rollout.answers, strict=True)]
    assert len(set(trainer.scorer(pairs))) > 2
    assert trainer.score(rollout)[0]["learned"].tolist() == trainer.scorer(pairs)


def test_an_answer_ends_with_its_first_eos(make):
    trainer = make()
    rollout = first_batch(trainer)
    eos, pad = trainer.processing_class.eos_token_id, trainer.processing_class.pad_token_id
    for row, padding, ended in zip(rollout.response, rollout.padding, rollout.ended, strict=True):
        answer = row[~padding].tolist()
        assert eos not in answer[:-1]
        assert pad not in answer
        assert (answer[-1] == eos) == bool(ended)


def test_an_answer_that_ends_with_another_of_the_models_ends_is_scored_as_its_text_with_eos(make):
    trainer = make()
    tokenizer = trainer.processing_class
    drawn = first_batch(trainer).response[:, 3].tolist()
    tokenizer.ends = tuple({*drawn} - {tokenizer.pad_token_id})
    trainer = make()
    trainer.processing_class.ends = tokenizer.ends
    rollout = first_batch(trainer)
    others = rollout.ended & ~(rollout.response == tokenizer.eos_token_id).any(1)
    assert others.any()
    scores = trainer.score(rollout)[0]["learned"].tolist()
    for i in others.nonzero().flatten().tolist():
        answer = rollout.response[i][~rollout.padding[i]].tolist()
        assert answer[-1] in tokenizer.ends
        assert not {*answer[:-1]} & {*tokenizer.ends}
        row = rollout.ids[i][rollout.ids[i] != tokenizer.pad_token_id].tolist()
        (state,) = reward_state(trainer, [*row[:-1], tokenizer.eos_token_id])
        assert scores[i] == pytest.approx(trainer.head(state[None]).item(), abs=1e-3)


def reward_state(trainer, ids):
    """The reward adapter's state of the last token."""
    with adapter(trainer.policy, "reward"):
        return states_at(trainer.policy, torch.tensor([ids]), torch.tensor([[len(ids) - 1]]))[0]


@PLACEMENTS
def test_behind_the_end_of_an_answer_there_is_nothing_but_the_value_of_the_state_after_it(make, value):
    trainer = make(value=value)
    scatter(trainer.policy, "policy")
    torch.nn.init.normal_(trainer.model.value_model.score.weight)
    batch = next(trainer._batches())
    set_seed(0)
    sampled = trainer.roll_out(batch).response
    trainer.processing_class.eos_token = trainer.processing_class.convert_ids_to_tokens(sampled[0, 1].item())
    set_seed(0)
    rollout = trainer.roll_out(batch)
    assert rollout.response[0].tolist() == [*sampled[0, :2].tolist(), *[trainer.processing_class.pad_token_id] * 4]
    assert rollout.lengths[0] == 2
    places = torch.arange(LENGTH)[None]
    assert torch.equal(rollout.padding, places >= rollout.lengths[:, None])
    for numbers in (rollout.logprobs, rollout.reference_logprobs, rollout.entropy):
        assert not numbers[rollout.padding].any()
        assert numbers[~rollout.padding].all()
    assert torch.equal(rollout.states_padding, places > rollout.lengths[:, None])
    assert not rollout.values[rollout.states_padding].any()
    assert rollout.values[~rollout.states_padding].all()


# Score.


def scored(trainer, **changes):
    rollout = dataclasses.replace(first_batch(trainer), **changes)
    return trainer.score(rollout)[1]


def always(value, weight=1.0):
    return Reward(learned=0.0, terms=(Term("constant", lambda prompt, answer, example: value, weight=weight),))


@pytest.mark.parametrize(("value", "clipped"), [(1000.0, 3.0), (-1000.0, -3.0), (2.0, 2.0)])
def test_a_score_is_cut_to_the_reward_clip(make, value, clipped):
    scores = scored(make(always(value), reward_clip=3.0, missing_eos_penalty=0.0))
    assert scores.tolist() == pytest.approx([clipped] * 8)


def test_no_reward_clip_leaves_scores_alone(make):
    scores = scored(make(always(1000.0), reward_clip=0.0, missing_eos_penalty=0.0))
    assert scores.tolist() == pytest.approx([1000.0] * 8)


def test_the_missing_eos_penalty_is_taken_from_answers_without_end_alone_and_after_clipping(make):
    ended = torch.tensor([True, False] * 4)
    scores = scored(make(always(1000.0), reward_clip=3.0, missing_eos_penalty=1.5), ended=ended)
    assert scores.tolist() == pytest.approx([3.0, 1.5] * 4)


def test_a_sum_that_float32_does_not_hold_names_its_row_even_where_it_would_be_clipped(make):
    trainer = make(always(1e38, weight=100.0))
    before = everything(trainer)
    with pytest.raises(
        UserError, match=r"weighted sum of the reward's terms is inf on the answer '.*give them smaller weights"
    ):
        trainer.train()
    assert largest_difference(before, everything(trainer)) == 0


def test_a_term_that_hangs_stops_before_the_weights_change(make):
    hangs = Reward(learned=0.0, terms=(Term("slow", lambda prompt, answer, example: time.sleep(60), weight=1.0),))
    trainer = make(hangs)
    trainer.term_seconds = 0.1
    before = everything(trainer)
    with pytest.raises(UserError, match=r"'slow' took more than limits.term_seconds=0.1 .*row 1 of 8"):
        trainer.train()
    assert largest_difference(before, everything(trainer)) == 0


def test_terms_are_summed_by_their_weights(make):
    trainer = make()
    rollout = first_batch(trainer)
    terms, scores = trainer.score(dataclasses.replace(rollout, ended=torch.ones(8, dtype=torch.bool)))
    assert terms.keys() == {"brevity", "learned"}
    assert scores.tolist() == pytest.approx((terms["learned"] + 0.5 * terms["brevity"]).tolist(), abs=1e-5)


# Advantages.


def literal_advantages(rewards, values, gamma, lam):
    """A sum over all later errors, as the paper writes it."""
    following = [*values[1:], 0.0]
    errors = [r + gamma * after - value for r, value, after in zip(rewards, values, following, strict=True)]
    return [sum((gamma * lam) ** (k - t) * errors[k] for k in range(t, len(errors))) for t in range(len(errors))]


@pytest.mark.parametrize("estimator", ["k1", "k3"])
@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.8)])
def test_advantages_are_those_of_a_literal_sum(make, gamma, lam, estimator):
    trainer = make(UNLEARNED, gamma=gamma, lam=lam, kl_coef=0.3, kl_estimator=estimator)
    lengths = [1, 2, 4, 5, LENGTH, LENGTH, 3, 1]
    rollout = rollout_of(trainer, lengths)
    scores = torch.randn(8)
    advantages, returns, _ = trainer.estimate_advantages(rollout, scores)

    raw = []
    for i, length in enumerate(lengths):
        states = min(length + 1, LENGTH)  # one follows the last token, unless the budget is used up
        rewards = [0.0] * states
        for t in range(length):
            policy, reference = rollout.logprobs[i, t].item(), rollout.reference_logprobs[i, t].item()
            k1, k3 = policy - reference, math.exp(reference - policy) - 1 - (reference - policy)
            rewards[t] -= 0.3 * (k1 if estimator == "k1" else k3)
        rewards[-1] += scores[i].item()
        values = rollout.values[i, :states].tolist()
        gains = literal_advantages(rewards, values, gamma, lam)
        raw.append(gains[:length])
        expected = [gain + value for gain, value in zip(gains, values, strict=True)]
        assert returns[i, :states].tolist() == pytest.approx(expected, abs=1e-4)
    flat = torch.tensor([gain for gains in raw for gain in gains])
    for i, gains in enumerate(raw):
        whitened = ((torch.tensor(gains) - flat.mean()) / flat.std()).tolist()
        assert advantages[i, : lengths[i]].tolist() == pytest.approx(whitened, abs=1e-4)
        assert advantages[i, lengths[i] :].tolist() == [0.0] * (LENGTH - lengths[i])


def rollout_of(trainer, lengths):
    """A real rollout with random numbers in place of the model's, for answers of the given lengths."""
    torch.manual_seed(1)
    places = torch.arange(LENGTH)[None]
    padding = places >= torch.tensor(lengths)[:, None]
    states_padding = places > torch.tensor(lengths)[:, None]
    shape = (len(lengths), LENGTH)
    return dataclasses.replace(
        first_batch(trainer),
        padding=padding,
        states_padding=states_padding,
        logprobs=torch.randn(shape).masked_fill(padding, 0),
        reference_logprobs=torch.randn(shape).masked_fill(padding, 0),
        values=torch.randn(shape).masked_fill(states_padding, 0),
    )


# Update.


DRAWN_FROM = pytest.mark.parametrize("dense_rollout", ["never", "always"])


@DRAWN_FROM
@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_the_first_ratio_is_one(make, quantization, dense_rollout):
    trainer = make(quantization=quantization, num_ppo_epochs=1, dense_rollout=dense_rollout)
    scatter(trainer.policy, "policy")
    trainer.train()
    assert logged(trainer, "val/ratio") == pytest.approx([1, 1], abs=1e-5)
    assert logged(trainer, "policy/approxkl_avg") == pytest.approx([0, 0], abs=1e-9)
    assert logged(trainer, "policy/clipfrac_avg") == [0, 0]


@PLACEMENTS
@DRAWN_FROM
@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_a_policy_in_bfloat16_does_not_differ_from_itself(make, value, quantization, dense_rollout):
    """Sampling a token at a time rounds otherwise than reading a row, and much more than an update moves."""
    settings = {"value": value, "num_ppo_epochs": 1, "temperature": 0.7, "dense_rollout": dense_rollout}
    trainer = make(quantization=quantization, dtype="bfloat16", **settings)
    scatter(trainer.policy, "policy", size=1.0)
    for ours, theirs in zip(of_role(trainer, "policy"), of_role(trainer, "reference"), strict=True):
        theirs.data.copy_(ours)
    trainer.train()
    assert logged(trainer, "objective/kl")[0] == 0
    assert logged(trainer, "first/log_ratio_max") == pytest.approx([0, 0], abs=1e-6)
    assert logged(trainer, "first/clipfrac_avg") == [0, 0]
    assert logged(trainer, "sampling/rounding_avg")[0] > 0
    assert logged(trainer, "sampling/rounding_max")[0] > 1e-4


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_answers_are_drawn_from_the_dense_copy_alone_and_are_the_policys(make, quantization, monkeypatch):
    drawn = {}
    for dense_rollout in ("never", "always"):
        trainer = make(quantization=quantization, dense_rollout=dense_rollout)
        scatter(trainer.policy, "policy", size=0.5)
        copies = []
        monkeypatch.setattr(
            "rlrecipes.policy.sampler.dense", lambda model, copies=copies: copies.append(model) or dense(model)
        )
        set_seed(1)
        rollout = first_batch(trainer)
        answers = [trainer.sampler.greedy(trainer.prompts[:3]), trainer.sampler.at_temperature_1(trainer.prompts[:3])]
        drawn[dense_rollout] = rollout, answers, len(copies)
    (theirs, their_answers, none), (ours, our_answers, made) = drawn["never"], drawn["always"]
    assert (none, made) == (0, 3)
    assert (ours.answers, our_answers) == (theirs.answers, their_answers)
    for name in ("logprobs", "reference_logprobs", "values", "entropy", "last_states"):
        assert torch.allclose(getattr(ours, name), getattr(theirs, name), atol=1e-4), name


def of_role(trainer, role):
    return [parameter for name, parameter in trainer.model.named_parameters() if f".{role}." in name]


def test_values_in_bfloat16_are_those_of_the_update(make):
    trainer = make(dtype="bfloat16")
    scatter(trainer.policy, "policy")
    torch.nn.init.ones_(trainer.model.value_model.score.weight)
    rollout = first_batch(trainer)
    places = places_before(rollout.prompt_lengths, LENGTH, rollout.ids.shape[1])
    with torch.no_grad():
        lengths = rollout.prompt_lengths, rollout.prompt_lengths + rollout.lengths
        read = trainer.model.value_model(trainer.sampler._states(rollout.ids, places, *lengths))
    assert torch.equal(rollout.values, read.masked_fill(rollout.states_padding, 0))


def test_in_float32_sampling_is_read_but_once(make):
    trainer = make(num_ppo_epochs=2, num_mini_batches=2, learning_rate=1e-2)
    assert first_batch(trainer).rounding is None
    trainer.train()
    assert not logged(trainer, "sampling/rounding_avg")
    assert logged(trainer, "first/ratio") == pytest.approx([1, 1], abs=1e-5)
    assert logged(trainer, "policy/log_ratio_max")[0] > logged(trainer, "first/log_ratio_max")[0]


def test_later_ratios_are_not_one(make):
    trainer = make(num_ppo_epochs=4, learning_rate=1e-2)
    trainer.train()
    assert logged(trainer, "policy/approxkl_avg")[0] > 1e-6


@pytest.mark.parametrize("optim", ["adamw_torch", "sgd"])
def test_the_micro_batch_size_changes_nothing(make, optim):
    rate = {"adamw_torch": 1e-3, "sgd": 1e-1}[optim]
    weights = []
    for size, accumulation in ((8, 1), (4, 2), (2, 4)):
        trainer = make(
            optim=optim,
            learning_rate=rate,
            max_grad_norm=1e6,
            num_ppo_epochs=2,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
        )
        before = trained(trainer)
        trainer.train()
        weights.append(trained(trainer))
        assert largest_difference(before, weights[-1]) > 1e-3
    assert largest_difference(weights[0], weights[1]) < 1e-5
    assert largest_difference(weights[0], weights[2]) < 1e-5


def test_a_batch_takes_as_many_steps_as_it_has_mini_batches_and_epochs(make, monkeypatch):
    trainer = make(num_mini_batches=4, num_ppo_epochs=3, total_episodes=8, per_device_train_batch_size=8)
    step, steps = trainer.optimizer.step, []
    monkeypatch.setattr(trainer.optimizer, "step", lambda: steps.append(step()))
    trainer.train()
    assert len(steps) == 12


def test_the_gradients_norm_is_cut_to_its_maximum(make):
    trainer = make(optim="sgd", learning_rate=1.0, max_grad_norm=1e-3, num_ppo_epochs=1, total_episodes=8)
    trainer.begins_at_mean = False  # which is no step
    before = trained(trainer)
    trainer.train()
    after = trained(trainer)
    moved = math.sqrt(sum((after[name] - before[name]).square().sum().item() for name in before))
    assert logged(trainer, "policy/grad_norm")[0] > 1e-2
    assert moved == pytest.approx(1e-3, rel=1e-2)


def test_a_trainer_that_was_left_in_the_middle_of_an_accumulation_does_not_stop_the_next_ones_steps(make):
    trainer = make()
    before = trained(trainer)
    trainer.accelerator.sync_gradients = False
    trainer.train()
    assert largest_difference(before, trained(trainer)) > 0


@PLACEMENTS
def test_gradient_checkpointing_recomputes_and_changes_nothing(make, value):
    weights, calls = [], []
    for checkpointing in (False, True):
        trainer = make(gradient_checkpointing=checkpointing, value=value)
        calls.append(0)

        def count(*_):
            calls[-1] += torch.is_grad_enabled()

        trainer.policy.get_base_model().model.layers[0].mlp.register_forward_pre_hook(count)
        trainer.train()
        weights.append(trained(trainer))
    assert largest_difference(*weights) < 1e-6
    assert calls[1] == 2 * calls[0] > 0


def literal_loss(trainer, rollout, advantages, returns):
    """PPO's loss as the papers write it, row by row, on Transformers' own logits and hidden states."""
    args, sums, counts = trainer.args, [0.0, 0.0], [0, 0]
    head = trainer.model.value_model.score
    for i, ids in enumerate(rollout.ids):
        length, start = int(rollout.lengths[i]), int(rollout.prompt_lengths[i])
        ids = ids[: start + length]
        output = trainer.policy(input_ids=ids[None], output_hidden_states=True)
        logprobs = (output.logits[0, start - 1 : -1] / args.temperature).log_softmax(-1)
        chosen = logprobs.gather(1, ids[start:, None])[:, 0]
        ratio = (chosen - rollout.logprobs[i, :length]).exp()
        gain = advantages[i, :length]
        sums[0] += torch.max(-gain * ratio, -gain * ratio.clamp(1 - args.cliprange, 1 + args.cliprange)).sum()
        counts[0] += length
        if trainer.settings.value == "adapter":
            trainer.policy.set_adapter("value")
            output = trainer.policy(input_ids=ids[None], output_hidden_states=True)
            trainer.policy.set_adapter("policy")
        states = min(length + 1, rollout.response.shape[1])
        value = head(output.hidden_states[-1][0, start - 1 : start - 1 + states])[:, 0]
        old, target = rollout.values[i, :states], returns[i, :states]
        clipped = value.clamp(old - args.cliprange_value, old + args.cliprange_value)
        sums[1] += torch.max((value - target) ** 2, (clipped - target) ** 2).sum()
        counts[1] += states
    return sums[0] / counts[0], args.vf_coef * 0.5 * sums[1] / counts[1]


@pytest.mark.parametrize("checkpointing", [False, True])
@PLACEMENTS
def test_gradients_are_those_of_a_literal_ppo_step_in_float64(make, value, checkpointing):
    trainer = make(value=value, gradient_checkpointing=checkpointing, per_device_train_batch_size=8)
    trainer.model.double()
    scatter(trainer.policy, "policy", size=0.3)
    torch.nn.init.normal_(trainer.model.value_model.score.weight, std=0.1)
    rollout = rollout_of(trainer, [1, 2, 4, 5, LENGTH, LENGTH, 3, 1])
    advantages, returns, _ = trainer.estimate_advantages(rollout, torch.randn(8, dtype=torch.float64))
    trainer.model.train()
    trainer.args.per_device_train_batch_size = 3  # micro-batches that do not divide the mini-batch

    policy_loss, value_loss = literal_loss(trainer, rollout, advantages, returns)
    parameters = {name: p for name, p in trainer.model.named_parameters() if any(p is q for q in trainer._trainable())}
    expected = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for adapter_name, loss in (("policy", policy_loss), (value if value == "adapter" else "policy", value_loss)):
        role = "value" if adapter_name == "adapter" else "policy"
        trainer.policy.set_adapter(role)
        wanted = [name for name, p in parameters.items() if p.requires_grad]
        found = torch.autograd.grad(loss, [parameters[name] for name in wanted], retain_graph=True, allow_unused=True)
        for name, gradient in zip(wanted, found, strict=True):
            expected[name] += 0 if gradient is None else gradient
    trainer.policy.set_adapter("policy")

    statistics = trainer._accumulate(rollout, advantages, returns, torch.arange(8))
    assert float(statistics["loss/policy_avg"]) == pytest.approx(policy_loss.item(), rel=1e-9)
    assert trainer.args.vf_coef * float(statistics["loss/value_avg"]) == pytest.approx(value_loss.item(), rel=1e-9)
    roles = {"policy", "value"} if value == "adapter" else {"policy"}
    assert all(any(f".{role}." in name for name in parameters) for role in roles)
    for name, parameter in parameters.items():
        scale = expected[name].abs().max().item()
        assert scale > 0, name
        assert (parameter.grad - expected[name]).abs().max().item() < 1e-6 * scale, name


def test_how_far_the_policy_moved_is_a_mean_over_the_mini_batchs_tokens(make):
    trainer = make()
    lengths = [1, 2, 4, 5, LENGTH, LENGTH, 3, 1]
    rollout = rollout_of(trainer, lengths)
    ratios = []
    for ids, start, length, old in zip(rollout.ids, rollout.prompt_lengths, lengths, rollout.logprobs, strict=True):
        new = log_probabilities(trainer.policy, ids[: start + length], int(start), trainer.args.temperature)
        old[:length] = (
            new - old[:length] / 4
        )  # not far from what the policy says, so that some are clipped and some not
        ratios += (new - old[:length]).exp().tolist()
    ratios = torch.tensor(ratios)
    trainer.args.per_device_train_batch_size = 3
    found = trainer._accumulate(rollout, torch.zeros_like(rollout.values), rollout.values, torch.arange(8))
    clipped = ((ratios - 1).abs() > trainer.args.cliprange).float().mean().item()
    assert 0.1 < clipped < 0.9
    assert float(found["policy/clipfrac_avg"]) == pytest.approx(clipped)
    assert float(found["policy/approxkl_avg"]) == pytest.approx(ratios.log().square().mean().item() / 2, rel=1e-3)
    assert float(found["val/ratio"]) == pytest.approx(ratios.mean().item(), rel=1e-3)


@PLACEMENTS
@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_only_the_policy_and_the_value_function_move(make, quantization, value):
    trainer = make(quantization=quantization, value=value)
    before = everything(trainer)
    trainer.train()
    after = everything(trainer)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert any(".lora_A.policy." in name for name in moved)
    assert any(".lora_B.policy." in name for name in moved)
    assert any("score.weight" in name for name in moved)
    assert any(".lora_B.value." in name for name in moved) == (value == "adapter")
    assert not {
        name for name in moved if ".policy.weight" not in name and ".value.weight" not in name and "score." not in name
    }
    untouched = set(before) - moved
    assert any(".reference." in name for name in untouched)
    assert any(".reward." in name for name in untouched)
    assert any("base_layer.weight" in name for name in untouched)


def test_values_of_an_adapter_are_those_of_its_model_alone(make, checkpoint):
    trainer = make(value="adapter")
    torch.nn.init.normal_(trainer.model.value_model.score.weight, std=0.1)
    rollout = first_batch(trainer)
    base = AutoModelForCausalLM.from_pretrained(checkpoint.model)
    adapter_config = PeftModel.from_pretrained(base, checkpoint.sft / "adapter", adapter_name="sft")
    alone = load_adapter(adapter_config, checkpoint.reward / "adapter", "value").eval()
    alone.set_adapter("value")
    for i, ids in enumerate(rollout.ids):
        start, length = int(rollout.prompt_lengths[i]), int(rollout.lengths[i])
        with torch.no_grad():
            states = alone(input_ids=ids[None, : start + length], output_hidden_states=True).hidden_states[-1][0]
            values = trainer.model.value_model.score(states[start - 1 : -1])[:, 0]
        assert rollout.values[i, :length].tolist() == pytest.approx(values.tolist(), abs=1e-4)


def test_a_reward_that_is_nan_stops_before_the_weights_change(make):
    trainer = make(always(float("nan")))
    before = everything(trainer)
    with pytest.raises(UserError, match=r"constant.*nan"):
        trainer.train()
    assert largest_difference(before, everything(trainer)) == 0


@PLACEMENTS
@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
@pytest.mark.parametrize("what", ["advantages", "returns"])
def test_a_loss_that_is_nan_or_infinite_names_its_row_and_stops_before_the_weights_change(make, value, what, broken):
    trainer = make(value=value)
    rollout = dataclasses.replace(first_batch(trainer), answers=[f"answer {i}" for i in range(8)])
    before = everything(trainer)
    numbers = {name: torch.zeros_like(rollout.values) for name in ("advantages", "returns")}
    numbers[what][5, 0] = broken
    with pytest.raises(UserError, match=r"NaN or infinite on the answer 'answer 5' to 'Say it"):
        trainer.update(rollout, **numbers)
    assert largest_difference(before, everything(trainer)) == 0
    assert all(parameter.grad is None for parameter in trainer._trainable())


def test_a_gradient_that_is_nan_stops_before_the_weights_change(make):
    trainer = make()
    rollout = first_batch(trainer)
    before = everything(trainer)
    trainer._trainable()[0].register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(UserError, match="gradient is NaN"):
        trainer.update(rollout, torch.ones_like(rollout.values), rollout.values)
    assert largest_difference(before, everything(trainer)) == 0
    assert all(parameter.grad is None for parameter in trainer._trainable())


def test_a_learned_score_that_is_nan_names_its_row(make):
    trainer = make()
    rollout = first_batch(trainer)
    rollout.last_states[3] = float("nan")
    rollout = dataclasses.replace(rollout, answers=[f"answer {i}" for i in range(8)])
    with pytest.raises(UserError, match=r"reward model gave NaN or infinity on the answer 'answer 3'"):
        trainer.score(rollout)


# KL.


def test_kl_starts_at_zero(make):
    trainer = make()
    trainer.train()
    assert logged(trainer, "objective/kl")[0] == pytest.approx(0, abs=1e-4)


def test_a_kl_above_its_stop_ends_the_run(make):
    trainer = make(kl_stop=0.1, total_episodes=80)
    scatter(trainer.policy, "policy", size=1.0)
    trainer.train()
    assert trainer.state.global_step == 1
    assert "kl_stop=0.1" in trainer.stopped
    assert logged(trainer, "objective/kl")[0] > 0.1


STOPPING = {"kl_stop": 1.0, "total_episodes": 80, "learning_rate": 0.003}
"""Under which a batch of the tiny policy is above its stop after some updates."""


@PLACEMENTS
def test_a_kl_above_its_stop_leaves_the_last_policy_whose_batch_was_within_it(make, value, monkeypatch):
    trainer, sampled_from = make(value=value, **STOPPING), []
    trainer.begins_at_mean = False  # the weights before the first batch are compared
    roll_out = trainer.roll_out
    monkeypatch.setattr(trainer, "roll_out", lambda batch: sampled_from.append(everything(trainer)) or roll_out(batch))
    trainer.train()
    kl = logged(trainer, "objective/kl")
    assert 2 <= len(kl) < 10
    assert kl[-1] > 1.0 >= max(kl[:-1])
    assert largest_difference(everything(trainer), sampled_from[-2]) == 0
    assert largest_difference(everything(trainer), sampled_from[-1]) > 0
    assert f"update {len(kl)}, above ppo.kl_stop=1; the policy kept is that of update {len(kl) - 1}" in trainer.stopped
    assert "policy/grad_norm" not in trainer.state.log_history[-1], "no step is taken on it"


def test_the_policy_to_go_back_to_outlives_an_interruption(make, tmp_path):
    whole = make(**STOPPING)
    whole.train()
    for update in range(1, whole.state.global_step):
        with pytest.raises(BreakError):
            make(**STOPPING).train(breaking_after(update)(tmp_path / str(update), 0))
        resumed = make(**STOPPING)
        resumed.train(Checkpoints(tmp_path / str(update), 0))
        assert resumed.stopped == whole.stopped
        assert largest_difference(everything(resumed), everything(whole)) == 0


def test_a_stop_that_is_not_reached_changes_nothing(make):
    ends = []
    for stop in (0.0, 1e6):
        trainer = make(kl_stop=stop)
        trainer.train()
        ends.append(trained(trainer))
    assert largest_difference(*ends) == 0


def test_a_kl_below_its_stop_does_not(make):
    trainer = make(kl_stop=1e6)
    trainer.train()
    assert trainer.state.global_step == 2
    assert trainer.stopped is None


def test_the_kl_weight_grows_above_the_target_and_shrinks_below(make):
    far = make(kl_target=0.1, kl_horizon=100, kl_coef=0.5, total_episodes=8)
    scatter(far.policy, "policy", size=1.0)
    far.train()
    assert far.args.kl_coef == pytest.approx(0.5 * (1 + 0.2 * 8 / 100))
    near = make(kl_target=0.1, kl_horizon=100, kl_coef=0.5, total_episodes=8)
    near.train()
    assert near.args.kl_coef == pytest.approx(0.5 * (1 - 0.2 * 8 / 100))


def test_without_a_target_the_kl_weight_stays(make):
    trainer = make(kl_coef=0.5)
    trainer.train()
    assert logged(trainer, "kl_coef") == [0.5, 0.5]


# The whole.


def test_samples_are_shown_and_take_nothing_from_the_random_numbers(make):
    weights = []
    for times in (0, 2):
        trainer = make(num_sample_generations=times)
        shown = []
        trainer.samples = [(PROMPTS[0], encode_prompt(trainer.processing_class, PROMPTS[0].prompt))]
        trainer.on_samples = lambda rows, step, shown=shown: shown.append((step, rows[0]["prompt"]))
        trainer.train()
        weights.append(trained(trainer))
    assert shown == [(1, "Say it"), (2, "Say it")]
    assert largest_difference(*weights) == 0


@pytest.fixture
def rollouts(monkeypatch):
    """The rollouts of a training, as they come."""
    seen, roll_out = [], SharedBasePPOTrainer.roll_out
    monkeypatch.setattr(
        SharedBasePPOTrainer, "roll_out", lambda self, batch: seen.append(roll_out(self, batch)) or seen[-1]
    )
    return seen


def test_what_is_logged_of_an_update_is_counted_from_its_answers(make, rollouts):
    trainer = make(total_episodes=16, kl_coef=0.3, missing_eos_penalty=0.5, temperature=0.7)
    scatter(trainer.policy, "policy", size=0.3)
    trainer.train()
    assert len(rollouts) == 2
    for number, rollout in enumerate(rollouts):
        row = {name: logged(trainer, name)[number] for name in trainer.state.log_history[number]}
        kl = (rollout.logprobs - rollout.reference_logprobs).sum(1)
        terms, scores = trainer.score(rollout)
        lengths = [int((~padding).sum()) for padding in rollout.padding]
        assert row["objective/kl"] == pytest.approx(kl.mean().item(), rel=1e-4)
        assert row["objective/kl"] > 0.01
        assert row["objective/non_score_reward"] == pytest.approx(-0.3 * kl.mean().item(), rel=1e-4)
        assert row["objective/scores"] == pytest.approx(scores.mean().item(), rel=1e-4)
        assert row["objective/rlhf_reward"] == pytest.approx((scores - 0.3 * kl).mean().item(), rel=1e-4)
        assert row["terms/brevity"] == pytest.approx(-sum(map(len, rollout.answers)) / 4 / 8, rel=1e-4)
        assert row["terms/learned"] == pytest.approx(terms["learned"].mean().item(), rel=1e-4)
        assert row["policy/entropy_avg"] == pytest.approx(rollout.entropy.sum().item() / sum(lengths), rel=1e-4)
        assert row["answers/length"] == pytest.approx(sum(lengths) / 8)
        assert row["answers/ended"] == sum(rollout.ended.tolist()) / 8
        assert row["kl_coef"] == 0.3
        assert row["lr"] == SETTINGS.learning_rate
        assert row["episode"] == 8 * (number + 1)
        assert row["epoch"] == pytest.approx((number + 1) / 8, abs=0.01)


@pytest.mark.parametrize(("ended", "said"), [(3, True), (4, False), (8, False)])
def test_answers_of_which_most_never_end_are_told_at_the_first_update_alone(
    make, rollouts, monkeypatch, capsys, ended, said
):
    trainer = make(total_episodes=16)
    roll_out = trainer.roll_out
    ends = torch.tensor([True] * ended + [False] * (8 - ended))
    monkeypatch.setattr(trainer, "roll_out", lambda batch: dataclasses.replace(roll_out(batch), ended=ends))
    trainer.train()
    assert capsys.readouterr().out.count("only 38% of the first answers end within 6 tokens") == said


def test_a_sample_is_the_last_turn_of_its_prompt_and_the_greedy_answer_to_all_of_it(make):
    trainer = make(num_sample_generations=1)
    tokenizer, shown = trainer.processing_class, []
    chat = (Message("user", "Hello"), Message("assistant", "Hi"), Message("user", "Say it"))
    trainer.samples = [(Example(chat, ("it",)), encode_prompt(tokenizer, chat))]
    trainer.on_samples = lambda rows, step: shown.extend(rows)
    ids = torch.tensor([encode_prompt(tokenizer, chat)])
    greedy = trainer.policy.eval().generate(input_ids=ids, max_new_tokens=LENGTH, do_sample=False)[0, ids.shape[1] :]
    trainer._show_samples(1)
    assert shown == [{"prompt": "Say it", "answer": decode(tokenizer, greedy)}]


def test_ppo_climbs_its_reward(make):
    letters = Term("letters", lambda prompt, answer, example: sum(c.isalpha() for c in answer) / LENGTH, weight=1.0)
    trainer = make(
        Reward(learned=0.0, terms=(letters,)),
        total_episodes=64 * 12,
        per_device_train_batch_size=64,
        learning_rate=3e-3,
        kl_coef=0.0,
        missing_eos_penalty=0.0,
    )
    trainer.train()
    scores = logged(trainer, "objective/scores")
    assert sum(scores[-3:]) / 3 > sum(scores[:3]) / 3 + 0.05


# Resume.


RESUMABLE = {
    "total_episodes": 104,
    "num_ppo_epochs": 1,
    "kl_target": 1.0,
    "kl_horizon": 100,
    "lr_scheduler_type": "linear",
    "warmup_steps": 2,
}
"""Thirteen updates: one pass over the 64 prompts and more than half of another."""


@pytest.fixture(scope="module")
def uninterrupted():
    """What an uninterrupted run of `RESUMABLE` ends with, by its other settings."""
    return {}


@pytest.mark.parametrize(
    ("quantization", "value", "updates"),
    [
        ("none", "trunk", (3, 4)),
        ("none", "trunk", (8,)),
        ("none", "trunk", (9, 13)),
        ("none", "adapter", (3, 9)),
        ("nf4", "trunk", (3, 9)),
    ],
)
def test_an_interrupted_run_ends_exactly_as_an_uninterrupted_one(
    make, tmp_path, uninterrupted, quantization, value, updates
):
    settings = {"quantization": quantization, "value": value, **RESUMABLE}
    if (quantization, value) not in uninterrupted:
        whole = make(**settings)
        whole.train()
        uninterrupted[quantization, value] = end_of(whole)
    for update in updates:
        with pytest.raises(BreakError):
            make(**settings).train(breaking_after(update)(tmp_path, 0))
    trainer = make(**settings)
    trainer.train(Checkpoints(tmp_path, 0))
    weights, logs, state = end_of(trainer)
    expected_weights, expected_logs, expected_state = uninterrupted[quantization, value]
    assert largest_difference(weights, expected_weights) == 0
    assert logs == expected_logs
    assert state == expected_state


class Novelty:
    """A term with state: 1 for an answer that has not been given before."""

    def __init__(self):
        self.seen = []

    def __call__(self, prompt, answer, example):
        new = answer not in self.seen
        self.seen.append(answer)
        return float(new)

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state):
        self.seen = list(state["seen"])


def test_a_term_with_state_goes_on_from_what_it_knew(make, tmp_path):
    def trainer():
        return make(reward=Reward(learned=0.0, terms=(Term("novelty", Novelty(), weight=1.0),)), **RESUMABLE)

    whole = trainer()
    whole.train()
    with pytest.raises(BreakError):
        trainer().train(breaking_after(3)(tmp_path, 0))
    resumed = trainer()
    resumed.train(Checkpoints(tmp_path, 0))
    known = [t.reward.terms[0].score.seen for t in (whole, resumed)]
    assert known[0] == known[1]
    assert len(known[0]) == RESUMABLE["total_episodes"]
    assert logged(resumed, "terms/novelty") == logged(whole, "terms/novelty")


def test_answers_at_temperature_1_are_the_same_each_time_and_leave_the_random_numbers_of_training(make):
    trainer = make()
    prompts = [encode_prompt(trainer.processing_class, example.prompt) for example in PROMPTS]
    before = torch.get_rng_state()
    first = trainer.sampler.at_temperature_1(prompts)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert trainer.sampler.at_temperature_1(prompts) == first
    assert trainer.sampler.greedy(prompts) != first


def test_a_run_that_is_watched_keeps_its_best_policy_however_often_it_is_interrupted(make, tmp_path):
    def begun():
        trainer = make(total_episodes=48, eval_every=1, patience=0)
        trainer.watch = watched(trainer, lambda answer, example: float(len(answer)))
        return trainer

    whole = begun()
    whole.train()
    assert [row["update"] for row in whole.watch.rows] == list(range(7))
    with pytest.raises(BreakError):
        begun().train(breaking_after(3)(tmp_path, 0))
    parts = begun()
    parts.train(Checkpoints(tmp_path, 0))
    assert parts.watch.record(None) == whole.watch.record(None)
    assert parts.kept == whole.kept == whole.watch.best
    assert largest_difference(trained(parts), trained(whole)) == 0
    for parameter, weights in zip(whole._trainable(), whole.watch.weights, strict=True):
        assert torch.equal(parameter, weights)


def test_a_reward_for_brevity_is_caught_in_the_log_of_a_training_on_it(make):
    trainer = make(
        reward=Reward(
            learned=0.0, terms=(Term("brevity", lambda prompt, answer, example: -float(len(answer)), weight=1.0),)
        ),
        total_episodes=32 * 30,
        per_device_train_batch_size=32,
        learning_rate=0.003,
        kl_coef=0.0,
    )
    trainer.train()
    alarms = hacking({}, {"ppo": trainer.state.log_history}, [])
    assert any("the answers are shorter" in alarm and "the reward goes with the length" in alarm for alarm in alarms)


def test_a_run_goes_on_from_where_it_was_saved_and_not_from_where_it_broke(make, tmp_path, uninterrupted):
    class Rare(Checkpoints):
        def due(self):
            return trainer.state.global_step == 4

    class Breaking(Callback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 7:
                raise BreakError

    trainer = make(**RESUMABLE)
    trainer.callback_handler.add_callback(Breaking())
    with pytest.raises(BreakError):
        trainer.train(Rare(tmp_path, 0))
    trainer = make(**RESUMABLE)
    trainer.train(Checkpoints(tmp_path, 1e9))
    if ("none", "trunk") not in uninterrupted:
        whole = make(**RESUMABLE)
        whole.train()
        uninterrupted["none", "trunk"] = end_of(whole)
    assert largest_difference(end_of(trainer)[0], uninterrupted["none", "trunk"][0]) == 0


def test_the_speed_after_a_resume_is_that_of_the_updates_since(make, tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    ticking = SharedBasePPOTrainer.roll_out

    def roll_out(self, batch):
        clock[0] += 4.0
        return ticking(self, batch)

    monkeypatch.setattr(SharedBasePPOTrainer, "roll_out", roll_out)
    with pytest.raises(BreakError):
        make(total_episodes=32).train(breaking_after(2)(tmp_path, 0))
    trainer = make(total_episodes=32)
    trainer.train(Checkpoints(tmp_path, 1e9))
    assert logged(trainer, "eps") == [2.0] * 4  # eight episodes in four seconds


# Settings.


EFFECTS = {
    "total_episodes": ({}, 24),
    "per_device_train_batch_size": ({}, 4),
    "gradient_accumulation_steps": ({}, 2),
    "num_mini_batches": ({}, 2),
    "num_ppo_epochs": ({}, 2),
    "local_rollout_forward_batch_size": ({}, 4),
    "temperature": ({}, 0.5),
    "learning_rate": ({}, 2e-3),
    "lr_scheduler_type": ({}, "linear"),
    "warmup_steps": ({"lr_scheduler_type": "linear"}, 1),
    "weight_decay": ({}, 0.5),
    "adam_epsilon": ({}, 0.1),
    "max_grad_norm": ({}, 1e-3),
    "optim": ({}, "sgd"),
    "gradient_checkpointing": ({}, True),
    "kl_coef": ({}, 0.5),
    "kl_estimator": ({}, "k3"),
    "kl_target": ({}, 1.0),
    "kl_horizon": ({"kl_target": 1.0}, 100),
    "kl_stop": ({"learning_rate": 0.02}, 0.1),
    "value": ({}, "adapter"),
    "cliprange": ({"learning_rate": 0.02}, 0.01),
    "cliprange_value": ({"learning_rate": 0.02}, 1e-3),
    "vf_coef": ({}, 1.0),
    "gamma": ({}, 0.5),
    "lam": ({}, 0.5),
    "whiten_rewards": ({}, True),
    "missing_eos_penalty": ({}, 0.0),
    "reward_clip": ({}, 0.1),
    "eval_every": ({}, 1),
    "keep": ({}, "last"),
    "patience": ({"eval_every": 1, "total_episodes": 64}, 1),
    "num_sample_generations": ({}, 2),
    "dense_rollout": ({}, "always"),
}
"""A value of each setting that is not the usual one, and what must be said beside it."""


def test_every_setting_of_ppo_is_changed_once():
    # the stage hands response_length to the trainer as a number of tokens, and the judge in the watch; `anyway` comes before
    assert EFFECTS.keys() | {"response_length", "judge", "anyway"} == {
        field.name for field in dataclasses.fields(PPOSettings)
    }


@pytest.fixture(scope="module")
def outcomes():
    """What trainings ended with, by their settings."""
    return {}


@pytest.mark.parametrize("name", EFFECTS)
def test_a_setting_that_is_changed_changes_what_is_trained_logged_or_shown(make, outcomes, name):
    beside, value = EFFECTS[name]

    def outcome(**settings):
        if (key := tuple(settings.items())) not in outcomes:
            trainer, shown = make(**settings), []
            trainer.samples = [(PROMPTS[0], encode_prompt(trainer.processing_class, PROMPTS[0].prompt))]
            trainer.on_samples = lambda rows, step: shown.append((step, rows))
            looks = count()
            trainer.watch = watched(trainer, lambda answer, example: -next(looks))  # so the first is the best
            trainer.train()
            weights, logs, _ = end_of(trainer)
            outcomes[key] = (
                {number: tensor.tolist() for number, tensor in weights.items()},
                logs,
                trainer.stopped,
                shown,
                trainer.policy.is_gradient_checkpointing,
            )
        return outcomes[key]

    assert outcome(**beside) != outcome(**beside, **{name: value})


# Where values begin.


@PLACEMENTS
@pytest.mark.parametrize("whiten_rewards", [False, True])
def test_values_begin_at_the_first_batchs_mean_reward(make, value, whiten_rewards):
    reward = Reward(learned=0.0, terms=(BY_LENGTH, Term("constant", lambda *_: 7.0, weight=1.0)))
    trainer = make(reward=reward, value=value, num_ppo_epochs=1, whiten_rewards=whiten_rewards)
    seen = []
    inner = trainer.estimate_advantages

    def watched(rollout, scores):
        seen.append((rollout, trainer._rewards(rollout, scores)[0].sum(1).mean(), inner(rollout, scores)))
        return seen[-1][2]

    trainer.estimate_advantages = watched
    trainer.train()
    rollout, mean, _ = seen[0]
    assert torch.allclose(rollout.values, torch.full_like(rollout.values, mean).masked_fill(rollout.states_padding, 0))
    later = seen[1][0].values[~seen[1][0].states_padding]
    assert later.std() > 0, "and then they are learned"
    assert abs(later.mean() - mean) < abs(mean), "from there"


def test_a_constant_in_the_reward_changes_no_first_advantage(make):
    """From 0, the last tokens of every answer would seem better than its first."""

    def first(constant):
        terms = (BY_LENGTH, Term("constant", lambda *_: constant, weight=1.0))
        trainer = make(reward=Reward(learned=0.0, terms=terms))
        seen = []
        inner = trainer.estimate_advantages

        def watched(rollout, scores):
            seen.append(inner(rollout, scores).advantages)
            raise BreakError

        trainer.estimate_advantages = watched
        with pytest.raises(BreakError):
            trainer.train()
        return seen[0]

    assert torch.allclose(first(0.0), first(5.0), atol=1e-3)


def test_where_values_began_is_kept_when_a_run_goes_on(make, tmp_path):
    with pytest.raises(BreakError):
        make(num_ppo_epochs=1).train(breaking_after(1)(tmp_path, 0))
    resumed = make(num_ppo_epochs=1)
    begun = []
    resumed._begin_values = lambda *given: begun.append(given)
    resumed.train(Checkpoints(tmp_path, 0))
    assert not begun
    assert float(resumed.model.value_model.score.bias) != 0
