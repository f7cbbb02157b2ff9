import subprocess
import sys

import pytest

# a step's scratch memory: more than glibc ever takes from its heap by itself; then the faults of a second round
ROUNDS = """
import ctypes, resource, sys
from train.allocation import keep_freed
if sys.argv[1] == "kept": keep_freed()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
def once():
  piece = libc.malloc(100 << 20)
  ctypes.memset(piece, 1, 100 << 20)
  libc.free(piece)
once()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
once()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_scratch_memory_is_not_faulted_in_anew():
  faults = [int(subprocess.check_output([sys.executable, "-c", ROUNDS, how])) for how in ("kept", "given back")]
  assert faults[0] < 100 < faults[1]
