"""Adapters of a base in bfloat16: float32 is where they are kept, bfloat16 is where they are multiplied."""

from dataclasses import replace

import pytest
import torch
from conftest import scatter
from peft.tuners.lora.layer import LoraLayer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import LlamaConfig, LlamaForCausalLM

from rlrecipes.model.adapters import adapter, load_adapter
from rlrecipes.model.forward import hidden_states
from rlrecipes.model.loading import load_causal
from rlrecipes.model.tokens import encode_prompt, load_tokenizer
from rlrecipes.profile import ModelSettings
from rlrecipes.recipe import user

PLAIN = ModelSettings(quantization="none", dtype="bfloat16")
NF4 = ModelSettings(quantization="nf4", dtype="bfloat16")
ROLES = ("policy", "reference", "reward")

pytestmark = pytest.mark.parametrize("settings", [PLAIN, NF4], ids=["plain", "nf4"])


@pytest.fixture
def tokenizer(checkpoint):
    return load_tokenizer(checkpoint.model)


@pytest.fixture
def ids(tokenizer):
    return torch.tensor([encode_prompt(tokenizer, user("Say it again"))])


@pytest.fixture
def stack(checkpoint, tokenizer, settings):
    """A base with three adapters, as PPO holds them."""
    model = load_causal(str(checkpoint.model), settings, tokenizer)
    for role in ROLES:
        model = load_adapter(model, (checkpoint.reward if role == "reward" else checkpoint.sft) / "adapter", role)
    model.set_adapter("policy")
    return model.eval()


class Products(TorchDispatchMode):
    """Notes the type of each matrix product's result."""

    def __init__(self):
        super().__init__()
        self.found = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__.rstrip("_") in ("mm", "addmm", "bmm"):
            self.found |= {tensor.dtype for tensor in tree_leaves(result)}
        return result


def as_peft_does(model):
    """Takes our sum out of every adapter again."""
    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.lora_variant.clear()
            module.cast_input_dtype_enabled = True
    return model


def apart(states, others):
    """Their distance as a share of their size."""
    return (torch.dist(states.float(), others.float()) / others.float().norm()).item()


def trained(model):
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_every_role_multiplies_in_bfloat16_and_is_added_where_the_output_lies(stack, ids):
    for role in ROLES:
        stack.set_adapter(role)
        layers = [module for module in stack.modules() if isinstance(module, LoraLayer)]
        added = []

        def note(_, given, output, added=added):
            added.append((type(output.grad_fn).__name__, output.dtype))

        hooks = [layer.register_forward_hook(note) for layer in layers]
        with Products() as products:
            hidden_states(stack, ids)
        for hook in hooks:
            hook.remove()
        assert added == [("_AddProductBackward", torch.bfloat16)] * len(layers)
        products.found.discard(torch.float32)  # that of rotary positions, of which one side is a single number
        assert products.found == {torch.bfloat16}


def test_weights_and_gradients_stay_in_float32_so_that_steps_below_bfloat16_add_up(stack, ids):
    optimizer = torch.optim.SGD(trained(stack).values(), lr=1e-9)
    before = {name: weight.detach().clone() for name, weight in trained(stack).items()}
    hidden_states(stack.train(), ids).float().square().sum().backward()
    assert {weight.grad.dtype for weight in trained(stack).values()} == {torch.float32}
    optimizer.step()
    moved = {name for name, weight in trained(stack).items() if not torch.equal(weight, before[name])}
    assert moved
    assert {weight.dtype for weight in trained(stack).values()} == {torch.float32}
    assert not any((weight - before[name]).abs().max() > 1e-3 for name, weight in trained(stack).items())


def test_roles_without_gradients_say_what_peft_says_up_to_rounding(stack, checkpoint, tokenizer, settings, ids):
    found = {}
    for role in (*ROLES, None):
        with adapter(stack, role):
            found[role] = hidden_states(stack, ids)
    as_peft_does(stack)
    for role, states in found.items():
        with adapter(stack, role):
            assert apart(states, hidden_states(stack, ids)) < 0.05
    assert apart(found["policy"], found["reward"]) > 0.2
    assert apart(found["policy"], found[None]) > 0.2


def saved_base(folder, tokenizer, seed):
    """A random Llama whose weights bfloat16 holds exactly."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        **{"vocab_size": len(tokenizer), "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2},
        **{"num_attention_heads": 4, "max_position_embeddings": 128, "initializer_range": 0.1, "bos_token_id": None},
        **{"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id},
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


def gradient(model, ids):
    """The gradient of the loss on `ids` by all weights of the adapter, `[numbers]`."""
    scatter(model, "policy", 0.02)
    model(input_ids=ids, labels=ids).loss.backward()
    return torch.cat([weight.grad.flatten().double() for weight in trained(model).values()])


def test_gradients_are_hardly_further_from_float32_than_products_in_float32_leave_them(
    settings, checkpoint, tokenizer, tmp_path
):
    ratios = []
    for seed in range(4):
        base = str(saved_base(tmp_path / str(seed), tokenizer, seed))
        ids = torch.randint(len(tokenizer), (4, 48))

        def learned(dtype, ours, base=base, seed=seed, ids=ids):
            model = load_adapter(
                load_causal(base, replace(settings, dtype=dtype), tokenizer), checkpoint.sft / "adapter", "policy"
            )
            torch.manual_seed(seed)
            return gradient((model if ours else as_peft_does(model)).eval(), ids)

        exact = learned("float32", True)
        ours, peft = (torch.dist(learned("bfloat16", way), exact).item() for way in (True, False))
        assert 1e-3 * exact.norm() < peft < 0.1 * exact.norm()
        ratios.append(ours / peft)
    assert max(ratios) < 1.1, ratios
