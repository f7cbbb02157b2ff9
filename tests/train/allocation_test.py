import subprocess
import sys

import pytest

# pieces as large as a step's scratch memory: more than glibc ever takes from its heap by itself; faults of a later one
ROUNDS = """
import contextlib, ctypes, resource, sys
from train.allocation import freed_is_kept, one_heap
one_heap()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
def faults():
  before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  piece = libc.malloc(100 << 20)
  ctypes.memset(piece, 1, 100 << 20)
  libc.free(piece)
  return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
def resident():
  return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() >> 20
with freed_is_kept():
  faults()
  print(faults(), resident())
print(faults(), resident())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_scratch_memory_is_not_faulted_in_anew_and_given_back_at_the_end():
  words = subprocess.check_output([sys.executable, "-c", ROUNDS], text=True).split()
  kept_faults, kept_resident, faults, resident = map(int, words)
  assert kept_faults < 100 < faults
  assert resident <= kept_resident - 90
