"""Strict settings for every test: four CPU devices, warnings are errors, arrays of different ranks are not added up.

Every test gets its markers here, by its place and by what it uses: `process` for tests that start a process (PostgreSQL
is one), `browser` for tests that drive a browser, `train` for tests that train, `docs` for tests that run the examples
of the documents, `compile` for places that compile much, and `long` for tests that only CI waits for. `make check` runs
the tests without any of them, `make test` those without `browser` and `long`, `make test-all` all.
"""

import ast
import functools
import os
import pathlib
import random
import re
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

HERE = pathlib.Path(__file__).parent
MARKERS = {
  "colab": ("docs", "long"),
  "docs_test.py": ("docs",),
  "eval/commands_test.py": ("train",),
  "eval/pipeline_test.py": ("train",),
  "eval/speed": ("train", "long"),
  "eval/baselines": ("compile",),
  "eval/compare_test.py": ("train",),
  "eval/methods_test.py": ("train",),
  "eval/official_test.py": ("compile",),
  "eval/published_test.py": ("train",),
  "eval/benchmarks/uned_test.py": ("train",),
  "faults/campaign_test.py": ("long",),
  "faults/hosts.py": ("train", "long"),
  "faults/search_test.py": ("long",),
  "lowering_test.py": ("long",),
  "qat_jax/encoders/settings_test.py": ("long",),
  "qat_jax/encoders": ("compile",),
  "qat_jax/evidence_test.py": ("train",),
  "qat_jax/fit": ("train",),
  **{f"qat_jax/models/{name}_test.py": ("compile",) for name in ("experts", "forms", "levels", "memory", "projected")},
  **{f"qat_jax/models/{name}_test.py": ("compile",) for name in ("checkpoints", "quari", "quari_files", "tokens")},
  **{f"qat_jax/{name}_test.py": ("compile",) for name in ("cli", "marks", "prepare", "validation")},
  **{
    f"qat_jax/search/{name}_test.py": ("compile",) for name in ("coarse", "exact", "pieces", "rank", "sums", "warming")
  },
  **{f"qat_jax/serve/{name}_test.py": ("compile",) for name in ("aspects", "batch", "faults", "living", "refined")},
  **{f"qat_jax/serve/{place}": ("compile",) for place in ("collection", "service_test.py", "web")},
  "qat_jax/serve/learning_test.py": ("train", "process"),
  "train": ("train",),
  "train/encoder": ("long",),
  "train/hosts/exchange_test.py": ("long",),
  "train/trials": ("long",),
}  # by place below this folder
PROCESS = re.compile(r"\bsubprocess\.|\bPopen\(|\bProcesses\(|\bmultiprocessing\.")
MOST = 2 << 30  # bytes of a process that keeps what it compiled: two of them took 10 GB at the end, 5 with this


@pytest.fixture(scope="module", autouse=True)
def _compiled_programs_are_dropped() -> Iterator[None]:
  """Drops what JAX compiled, between modules, where a process has grown large."""
  yield
  pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
  if "jax" in sys.modules and pages * os.sysconf("SC_PAGE_SIZE") > MOST:
    sys.modules["jax"].clear_caches()


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
  """Draws the seed of property tests, unless --hypothesis-seed gives it."""
  if config.getoption("hypothesis_seed", None) is None:
    config.option.hypothesis_seed = str(random.randrange(2**32))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
  """Says how to draw the same cases again."""
  terminalreporter.write_line(f"property tests: --hypothesis-seed={config.getoption('hypothesis_seed', None)}")


def pytest_ignore_collect(collection_path: pathlib.Path, config: pytest.Config) -> bool | None:
  """Leaves out files of which -m wants no test, so that nothing is imported for them."""
  wanted = config.option.markexpr
  if not re.fullmatch(r"not \w+( and not \w+)*", wanted) or not collection_path.is_relative_to(HERE):
    return None
  return True if markers_of_place(collection_path) & set(wanted.split()) else None


def markers_of_place(path: pathlib.Path) -> set[str]:
  """Returns the markers that all tests in a file or folder have."""
  return {name for place, names in MARKERS.items() if path.is_relative_to(HERE / place) for name in names}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
  """Marks the tests by their place and by what they use."""
  for item in items:
    names = markers_of_place(item.path)
    needs = {getattr(item, "originalname", item.name), *getattr(item, "fixturenames", ())}
    needs |= {"postgres"} if "[pgvector" in item.name or "-pgvector" in item.name else set()
    names |= {"process"} if needs & {"postgres", *starting_processes(item.path)} else set()
    names |= {"browser"} if "browser" in needs else set()
    for name in names:
      item.add_marker(name)


@functools.cache
def starting_processes(path: pathlib.Path) -> set[str]:
  """Returns the functions of a file that start a process, or call or request one that does."""
  source = path.read_text()
  if not PROCESS.search(source):
    return set()
  nodes, lines = ast.parse(source).body, source.splitlines()
  text = {n.name: "\n".join(lines[n.lineno - 1 : n.end_lineno]) for n in nodes if isinstance(n, ast.FunctionDef)}
  found = {name for name, body in text.items() if PROCESS.search(body)}
  while more := {name for name, body in text.items() if set(re.findall(r"\w+", body)) & found} - found:
    found |= more
  return found
