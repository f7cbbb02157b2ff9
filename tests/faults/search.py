"""Hunts for a wrong answer of the exact search: python -m tests.faults.search --cases 20000 --seed 0.

Each case is a map, a gallery, a place for it to lie in and masks, drawn to be as awkward as float32 allows, and ranked
against float64. What fails is made as simple as it can be while it fails, and printed as a test. A run that was stopped
goes on where it was; the same seed draws the same cases.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import json
import os
import pathlib
import sys
import tempfile
import time
import unittest.mock
from collections.abc import Iterator
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=4")

import jax
import jax.numpy as jnp
import numpy as np

from qat_jax.features.eight_bits import make as make_copy
from qat_jax.features.eight_bits import open_eight_bits
from qat_jax.features.shards import Shard, ShardedRows
from qat_jax.search import gallery as galleries
from qat_jax.search import kernels, scores, uppers
from qat_jax.search.bounds import prepare
from qat_jax.search.copies import copied_parts
from qat_jax.search.gallery import parts
from qat_jax.search.kernels import filtered
from qat_jax.search.rank import rank, rerank, score
from qat_jax.types import Adaptation, as_gallery
from tests.faults.search_cases import ALIKE, CHOICES, Case, draw, make

TOLERANCE = 2e-6  # what a score may be wrong by, and how near an item must be to the last one found to stand for it


def in_float64(own: Adaptation, item_ND: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns the scores (QN) with T z written out in float64, and what float64 itself may be wrong by."""
  item_ND, eps = np.asarray(item_ND, np.float64), np.finfo(float).eps
  found, unsure = [], []
  for query_D, gate, left_DR, right_DR in zip(*(np.asarray(x, np.float64) for x in jax.tree.leaves(own)), strict=True):
    mapped_ND = gate * item_ND + (item_ND @ right_DR) @ left_DR.T
    terms_N = np.linalg.norm(gate * item_ND, axis=1) + np.abs(item_ND) @ np.abs(right_DR) @ np.linalg.norm(
      left_DR, axis=0
    )
    length_N = np.linalg.norm(mapped_ND, axis=1)
    length_N = np.where(length_N > 0, length_N, np.inf)
    found.append(mapped_ND @ query_D / length_N)
    # without factors each entry of T z is one product, and right whatever the others are
    unsure.append((left_DR.shape[1] > 0) * 4 * (sum(right_DR.shape) + 4) * eps * terms_N / length_N)
  return np.stack(found), np.stack(unsure)


@contextlib.contextmanager
def elsewhere() -> Iterator[None]:
  """Makes search take a CPU for an accelerator: the device looks through bounds, and half precision stays as it is."""
  new = {
    (kernels, "ON_HOST"): (),
    (kernels, "BLOCK_ROWS"): {},
    (uppers, "FOUND"): 64,
    (kernels, "_upper_bounds"): _upper_bounds_elsewhere,
    (scores, "PIECE"): {},
  }
  old = {(module, name): getattr(module, name) for module, name in new}
  choose = jax.lax.platform_dependent
  try:
    for (module, name), value in new.items():
      setattr(module, name, value)
    jax.lax.platform_dependent = lambda *args, default, **_: default(*args)
    yield
  finally:
    jax.lax.platform_dependent = choose
    for (module, name), value in old.items():
      setattr(module, name, value)


_upper_bounds_elsewhere = jax.jit(
  kernels._upper_bounds.__wrapped__, static_argnames=("rows", "block", "lengths_only", "peaked")
)


def search(case: Case, own: Adaptation, item_ND: np.ndarray, masks: dict[str, np.ndarray]) -> tuple[np.ndarray, ...]:
  """Returns ids and scores (two QK) of a case, searched where it wants its gallery to lie."""
  with contextlib.ExitStack() as stack:
    gallery: Any = item_ND
    if case.place.endswith("elsewhere"):
      stack.enter_context(elsewhere())
    if case.place.startswith("shards"):
      two = jax.devices()[:2]  # or one, where there are no more
      mesh = jax.make_mesh((len(two),), ("gallery",), axis_types=(jax.sharding.AxisType.Auto,), devices=two)
      sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("gallery", None))
      rows = -(-len(item_ND) // 2) * 2  # shards are equally long: the rows that are added may not be found
      flags_N = masks.get("allowed", np.ones(len(item_ND), bool))
      if flags_N.dtype == bool and rows != len(item_ND):
        masks = {**masks, "allowed": np.pad(flags_N, (0, rows - len(item_ND)))}
      gallery = jax.device_put(np.pad(item_ND, ((0, rows - len(item_ND)), (0, 0)), "edge"), sharding)
    elif case.place in ("device", "elsewhere"):
      gallery = jnp.asarray(item_ND)
    elif case.place == "map" and item_ND.dtype != jnp.bfloat16:  # .npy files have no such numbers
      folder = stack.enter_context(tempfile.TemporaryDirectory())
      np.save(f"{folder}/gallery.npy", item_ND)
      gallery = np.load(f"{folder}/gallery.npy", mmap_mode="r")
    elif case.place == "copied" and item_ND.dtype != jnp.bfloat16:
      gallery = stack.enter_context(with_copy(item_ND))
    elif case.place == "shortlist" and not masks:
      order_QN = np.stack([np.random.default_rng(i).permutation(case.items) for i in range(case.queries)])
      return _padded(rerank(own, gallery, order_QN, case.k), case.k)
    streamed = {"devices": jax.devices()[:2], "chunk_rows": 256} if case.place in ("stream", "copied") else {}
    return _padded(rank(own, gallery, case.k, **masks, **streamed), case.k)


@contextlib.contextmanager
def with_copy(item_ND: np.ndarray) -> Iterator[ShardedRows]:
  """Yields items as shards on disk with an 8-bit copy beside them, which is streamed first."""
  with tempfile.TemporaryDirectory() as folder:
    paths = [pathlib.Path(folder, "img_emb", f"img_emb_{i}.npy") for i in range(2)]
    paths[0].parent.mkdir()
    for path, half_ND in zip(paths, np.array_split(item_ND, 2), strict=True):
      np.save(path, half_ND)
    rows: Any = ShardedRows([Shard.of(path) for path in paths if np.load(path).size])
    make_copy(rows)
    rows.space, rows.eight_bits = None, open_eight_bits(rows)
    yield rows


def _padded(ranking: Any, k: int) -> tuple[np.ndarray, np.ndarray]:
  ids_QK, score_QK = np.asarray(ranking.ids), np.asarray(ranking.scores)
  assert ids_QK.shape == score_QK.shape == (len(ids_QK), k), f"shapes {ids_QK.shape} and {score_QK.shape}"
  return ids_QK, score_QK


def check(case: Case) -> float:
  """Returns by how much a score is off at most; raises AssertionError where a case's ranking is not float64's."""
  rows = 32 if case.seed % 2 else kernels.PIECE_ROWS  # of a core: few, so that small galleries are looked at in pieces
  eight_bits = case.seed // 2 % 4 > 0
  with contextlib.ExitStack() as stack:
    stack.enter_context(unittest.mock.patch.object(kernels, "PIECE_ROWS", rows))
    stack.enter_context(unittest.mock.patch.object(galleries, "wanted", return_value=eight_bits))
    return _checked(case)


def _checked(case: Case) -> float:
  own, item_ND, masks, wanted_QN = make(case)
  exact_QN, unsure_QN = in_float64(own, item_ND)
  _, group_N = np.unique(item_ND.view(np.uint8).reshape(len(item_ND), -1), axis=0, return_inverse=True)
  ids_QK, score_QK = search(case, own, item_ND, masks)
  worst = 0.0
  for query in range(case.queries):
    _check(ids_QK[query], score_QK[query], exact_QN[query], TOLERANCE + unsure_QN[query], wanted_QN[query], group_N)
    ids_K = ids_QK[query][ids_QK[query] >= 0]
    wrong_K = np.abs(score_QK[query][: len(ids_K)] - exact_QN[query, ids_K]) - unsure_QN[query, ids_K]
    worst = max(worst, float(wrong_K.max(initial=0)))
  if case.place == "shortlist":
    return worst
  with elsewhere() if case.place.endswith("elsewhere") else contextlib.nullcontext():
    _check_bounds(case, own, item_ND, exact_QN - unsure_QN)
  if case.seed % 4 == 0:
    wrong_QN = np.abs(np.asarray(score(own, item_ND)) - exact_QN) - unsure_QN
    assert wrong_QN.max() < TOLERANCE, f"score is off by {wrong_QN.max():.2e}"
  return worst


def _check_bounds(case: Case, own: Adaptation, item_ND: np.ndarray, exact_QN: np.ndarray) -> None:
  """Raises AssertionError where the score of an item exceeds its bounds: whether or not the search would lose it."""
  prepared = prepare(own)
  gallery = item_ND if case.place in ("host", "map", "stream") else jnp.asarray(item_ND)
  looked_at = parts(as_gallery(gallery), None, 256 if case.place == "stream" else None, case.queries)
  if case.place == "copied" and item_ND.dtype != jnp.bfloat16:
    with with_copy(item_ND) as rows:
      looked_at = list(copied_parts(rows, rows.eight_bits, jax.devices()[:1], 256, 256))
  for part in looked_at:
    exact_NQ = exact_QN.T[part.first : part.first + part.items]
    # where all queries have one map, its lengths may be taken before
    for looked in (kernels.upper_bounds(prepared.bounds, part, case.queries), filtered(prepared, part, case.queries)):
      query_P, item_P, upper_P = looked.reaching(np.full(case.queries, -np.inf))
      assert len(upper_P) == exact_NQ.size, f"{len(upper_P)} bounds of {exact_NQ.size}"
      over_P = exact_NQ[item_P, query_P] - upper_P
      assert over_P.max(initial=0) <= 0, f"a score exceeds its bound by {over_P.max():.2e}"
    if prepared.tight is not None and isinstance(part.features, jax.Array):
      query_P, item_P = np.divmod(np.arange(case.queries * part.items), part.items)
      over_P = exact_NQ[item_P, query_P] - scores.refined_bounds(prepared, part, query_P, item_P)
      over_P = over_P[exact_NQ[item_P, query_P] > 0]
      assert over_P.max(initial=0) <= 0, f"a score exceeds its refined bound by {over_P.max():.2e}"


def _check(
  ids_K: np.ndarray,
  score_K: np.ndarray,
  exact_N: np.ndarray,
  slack_N: np.ndarray,
  wanted_N: np.ndarray,
  group_N: np.ndarray,
) -> None:
  found = min(len(ids_K), int(wanted_N.sum()))
  assert (ids_K[found:] == -1).all() and (score_K[found:] == -np.inf).all(), "what is filled up is not −1, −inf"
  ids_K, score_K = ids_K[:found], score_K[:found]
  assert (ids_K >= 0).all() and len(set(ids_K)) == found, "items are missing, or twice there"
  assert wanted_N[ids_K].all(), "an item is found that is masked"
  if not found:
    return
  wrong_K = np.abs(score_K - exact_N[ids_K]) - slack_N[ids_K]
  assert wrong_K.max() < 0, f"the score of item {ids_K[wrong_K.argmax()]} is off by {wrong_K.max() + TOLERANCE:.2e}"
  assert (np.diff(score_K) <= 0).all(), "the scores do not fall"
  assert (np.diff(ids_K)[np.diff(score_K) == 0] > 0).all(), "of equal scores the higher id comes first"
  other_N = wanted_N.copy()
  other_N[ids_K] = False
  if other_N.any():
    last = exact_N[ids_K].min() + slack_N[ids_K[exact_N[ids_K].argmin()]]
    lost = int(np.argmax(np.where(other_N, exact_N - slack_N, -np.inf)))
    gap = exact_N[lost] - slack_N[lost] - last
    assert gap <= 0, f"item {lost} is lost, {gap + 2 * TOLERANCE:.2e} better than the last one found"
  # rows that are equal have equal scores, and the first of them are found, in their order
  order_K = np.lexsort((ids_K, group_N[ids_K]))
  same_K = np.diff(group_N[ids_K][order_K]) == 0
  assert (np.diff(score_K[order_K])[same_K] == 0).all(), "equal items have different scores"
  for group in np.unique(group_N[ids_K]):
    own_K = ids_K[group_N[ids_K] == group]
    first_K = np.flatnonzero(wanted_N & (group_N == group))[: len(own_K)]
    assert (own_K == first_K).all(), f"of equal items {own_K[:4]} are found, not {first_K[:4]}"


def tried(case: Case) -> tuple[str | None, float]:
  """Returns what is wrong with a case's ranking, in one line, or None, and by how much a score is off at most."""
  try:
    return None, check(case)
  except Exception as error:  # whatever it is, it is no answer
    name = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
    return f"{name}{error}".splitlines()[0], 0.0


def failure(case: Case) -> str | None:
  """Returns what is wrong with a case's ranking, in one line; None where nothing is."""
  return tried(case)[0]


def shrunk(case: Case) -> Case:
  """Returns a case that fails too, each of its fields as simple as it can be."""
  again = True
  while again:
    again = False
    for name, values in CHOICES.items():
      for value in values[: values.index(getattr(case, name)) if getattr(case, name) in values else len(values)]:
        simpler = dataclasses.replace(case, **{name: value})
        if failure(simpler):
          case, again = simpler, True
          break
  return case


def as_test(case: Case) -> str:
  """Returns a case as a test to paste."""
  plain = Case()
  said = [f"{name}={value!r}" for name, value in dataclasses.asdict(case).items() if value != getattr(plain, name)]
  return f"def test_a_case_that_failed():\n  search.check(search.Case({', '.join(said)}))"


def main() -> None:
  """Runs the cases that were not run yet, and ends with status 1 where one failed."""
  parser = argparse.ArgumentParser(description="Hunts for a wrong answer of the exact search.")
  parser.add_argument("--cases", type=int, default=20_000)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--state", type=pathlib.Path, help="what was run so far; runs/search-SEED.json")
  flags = parser.parse_args()
  path = flags.state or pathlib.Path(f"runs/search-{flags.seed}.json")
  path.parent.mkdir(parents=True, exist_ok=True)
  state = json.loads(path.read_text()) if path.exists() else {"done": 0, "failed": {}, "worst": 0.0}
  start = time.monotonic()
  for number in range(state["done"], flags.cases):
    wrong, error = tried(draw(flags.seed, number))
    state["worst"] = max(state["worst"], error)
    if wrong:
      case = shrunk(draw(flags.seed, number))
      state["failed"][str(number)] = as_test(case)
      print(f"\n# case {number} of seed {flags.seed}: {failure(case)}\n{as_test(case)}\n", flush=True)
    state["done"] = number + 1
    if wrong or state["done"] % 100 == 0 or state["done"] == flags.cases:
      path.with_suffix(".new").write_text(json.dumps(state))
      path.with_suffix(".new").replace(path)
    if state["done"] % ALIKE == 0:
      jax.clear_caches()  # thousands of compiled programs would fill the memory
    if state["done"] % 1000 == 0:
      print(f"{state['done']} cases, {len(state['failed'])} failed, {time.monotonic() - start:.0f} s", flush=True)
  drawn = [draw(flags.seed, number) for number in range(state["done"])]
  for name in ("place", "dtype", "factors", "gallery", "mask"):
    print(f"{name}: {dict(collections.Counter(getattr(case, name) for case in drawn))}")
  print(
    f"{state['done']} cases of seed {flags.seed}, {len(state['failed'])} failed; scores within {state['worst']:.1e}"
  )
  sys.exit(bool(state["failed"]))


if __name__ == "__main__":
  main()
