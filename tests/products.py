"""The floating-point operations of the products that a block of code makes."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, shape_wrapper

# Products in PyTorch's counter: it knows neither the addition in place of adapters nor the CPU's own attention.


def added(into, left, right, *args, out_shape=None, **kwargs):
    return 2 * left[0] * left[1] * right[1]


def attended(query, key, *args, out_shape=None, **kwargs):
    return 4 * query[0] * query[1] * query[2] * key[2] * query[3]


def attended_back(gradient, query, key, *args, out_shape=None, **kwargs):
    return 10 * query[0] * query[1] * query[2] * key[2] * query[3]


OURS = {
    torch.ops.aten.addmm_: added,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attended,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: attended_back,
}


class Products(TorchDispatchMode):
    """Counts as `FlopCounterMode` does, which itself follows modules and stumbles over a trainer's passes."""

    def __init__(self):
        super().__init__()
        self.count, self.formulas = 0, flop_registry | {op: shape_wrapper(formula) for op, formula in OURS.items()}

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        if formula := self.formulas.get(operation.overloadpacket):
            self.count += formula(*args, **(kwargs or {}), out_val=result)
        return result
