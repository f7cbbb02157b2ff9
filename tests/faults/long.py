"""The long campaign: mixed ranking with changing batch sizes and k; memory stays flat, nothing is compiled any more."""

import os
import pathlib
import random
import time

import jax
import numpy as np

from qat_jax.adaptation import Adaptation, power_of_two
from qat_jax.search.copies import GATHERED
from qat_jax.search.rank import rank, rerank
from qat_jax.search.warming import warm
from qat_jax.types import as_gallery
from tests.faults.bench import Bench, Outcome
from tests.faults.victims import Child

GROWTH = 20.0  # MB after the warm-up, at most
BATCHES = (1, 2, 5, 17, 32, 64)  # queries at once
PADDED = sorted({power_of_two(queries) for queries in BATCHES})  # which are compiled for
ROWS, WIDE, LOW, DEEP = 6_000, 32, 2, 200  # rows and width of the galleries, rank of the maps, most k
GALLERIES, FILTERS = 4, 2 * (1 + 2 * LOW)  # kinds of them, and how many forms a filter of theirs has: docs/search.md
COMPILED = len(PADDED) * (GALLERIES * (FILTERS + 1) + len(GATHERED)) + GALLERIES + 1  # that may be: docs/search.md
SETTLED = 0.1  # the share of the time in which what is held may settle


def case(bench: Bench, number: int, rng: random.Random) -> Outcome:
  """Ranks for `minutes` in a child, and looks at what it holds."""
  minutes = float(os.environ.get("CAMPAIGN_MINUTES", "30"))
  child = Child(lambda: ranked(minutes, rng.randrange(1 << 30)), bench.scratch)
  ended = child.end(patience=60 * minutes + 300)
  said = ended.lines[-1] if ended.lines else ""
  wrong = ended.unexplained or (said if ended.status or not said.startswith("flat: ") else "")
  return Outcome("mixed ranking", "wrong" if wrong else said, wrong)


def ranked(minutes: float, seed: int) -> None:
  """Ranks and reranks galleries of several kinds; prints what was done, and `flat: ` before it where all was well."""
  jax.config.update("jax_enable_compilation_cache", False)
  compiled, held = [0], []
  jax.monitoring.register_event_duration_secs_listener(
    lambda name, _, **__: compiled.__setitem__(0, compiled[0] + name.endswith("backend_compile_duration"))
  )
  rng = np.random.default_rng(seed)
  plain_ND = rng.normal(size=(ROWS, WIDE)).astype(np.float32)
  plain_ND /= np.linalg.norm(plain_ND, axis=1, keepdims=True)
  galleries = [plain_ND, plain_ND.astype(np.float16), jax.device_put(plain_ND), plain_ND[: ROWS // 7]]
  for gallery in galleries:
    for queries in PADDED:
      warm(_adaptation(rng, queries), as_gallery(gallery))
  warmed, searches = compiled[0], 0
  began = time.monotonic()
  until, settled = began + 60 * minutes, began + 60 * minutes * SETTLED
  while time.monotonic() < until:
    queries, k = int(rng.choice(BATCHES)), int(rng.integers(1, DEEP))
    adaptation, gallery = _adaptation(rng, queries), galleries[rng.integers(len(galleries))]
    masks = {"exclude": rng.integers(0, 100, queries)} if rng.random() < 0.3 else {}
    if rng.random() < 0.3:
      ranking = rerank(adaptation, gallery, rng.integers(0, len(gallery), (queries, int(rng.integers(1, DEEP)))), k)
    else:
      ranking = rank(adaptation, gallery, k, **masks)
    assert ranking.ids.shape == (queries, k)
    searches += 1
    if time.monotonic() > settled:
      held.append(_held())
  growth = np.mean(held[-len(held) // 10 - 1 :]) - np.mean(held[: len(held) // 10 + 1])
  flat = growth < GROWTH and compiled[0] <= COMPILED and compiled[0] == warmed
  print(
    f"{'flat' if flat else 'not flat'}: {searches:,} searches in {minutes:g} minutes; {held[-1]:.0f} MB held, "
    f"{growth:+.1f} after the warm-up; {compiled[0]} programs compiled of {COMPILED} that may be, "
    f"{compiled[0] - warmed} of them after it"
  )


def _adaptation(rng: np.random.Generator, queries: int) -> Adaptation:
  query_QD = rng.normal(size=(queries, WIDE)).astype(np.float32)
  query_QD /= np.linalg.norm(query_QD, axis=1, keepdims=True)
  left_QDR, right_QDR = (0.2 * rng.normal(size=(queries, WIDE, LOW)).astype(np.float32) for _ in range(2))
  gate_QD = 1 + 0.2 * rng.normal(size=(queries, WIDE)).astype(np.float32)
  return Adaptation(*map(jax.device_put, (query_QD, gate_QD, left_QDR, right_QDR)))


def _held() -> float:
  """Returns the megabytes that this process holds."""
  pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
  return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
