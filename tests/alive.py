"""The bytes of the tensors that are alive, on a CPU as on a GPU."""

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Alive(TorchDispatchMode):
    """Counts the bytes of live tensors, as `torch.cuda.max_memory_allocated` does on a GPU."""

    def __init__(self):
        super().__init__()
        self.held, self.now, self.peak = {}, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in self.held:
                storage = tensor.untyped_storage()
                self.held[storage._cdata] = storage.nbytes()
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self.freed, storage._cdata)
        return result

    def freed(self, key):
        self.now -= self.held.pop(key, 0)
