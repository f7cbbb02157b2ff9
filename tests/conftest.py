"""Strict settings for every test: four CPU devices, warnings are errors, arrays of different ranks are not added up."""

import os
import pathlib
import sys
from collections.abc import Iterator

import pytest

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
os.environ["HF_HUB_OFFLINE"] = "1"
# compiling takes most of the time: what took long is kept for other workers, processes that tests start, and later runs
os.environ.setdefault(
  "JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(__file__).parent.parent / ".pytest_cache" / "compiled")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

MOST = 2 << 30  # bytes of a process that keeps what it compiled: two of them took 10 GB at the end, 5 with this


@pytest.fixture(scope="module", autouse=True)
def _compiled_programs_are_dropped() -> Iterator[None]:
  """Drops what JAX compiled, between modules, where a process has grown large."""
  yield
  pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
  if "jax" in sys.modules and pages * os.sysconf("SC_PAGE_SIZE") > MOST:
    sys.modules["jax"].clear_caches()
