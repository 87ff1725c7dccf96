"""What is freed is kept for the next step where the C library can be told so."""

import ctypes
import os
import subprocess
import sys

import pytest

from rlrecipes.run.allocator import OPTIONS, grow_in_place, keep_freed_memory

FAULTS = """
import resource, sys
from rlrecipes.run.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def step():
    blocks = [bytearray(20 << 20) for _ in range(4)]
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how):
    found = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True)
    return int(found.stdout)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"), reason="another C library")
def test_memory_that_is_used_again_is_not_taken_from_the_system_again():
    assert faults("keep") < faults("leave") / 10


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    keep_freed_memory()


@pytest.mark.parametrize("chosen", [None, *OPTIONS])
def test_a_gpus_allocator_grows_in_place_unless_the_user_chose_otherwise(monkeypatch, chosen):
    for name in OPTIONS:
        monkeypatch.delenv(name, raising=False)
    if chosen:
        monkeypatch.setenv(chosen, "max_split_size_mb:64")
    grow_in_place()
    found = {name: os.environ[name] for name in OPTIONS if name in os.environ}
    assert found == {chosen or OPTIONS[0]: "max_split_size_mb:64" if chosen else "expandable_segments:True"}
    monkeypatch.delenv(OPTIONS[0], raising=False)
