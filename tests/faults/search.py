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
from collections.abc import Iterator
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=4")

import jax
import jax.numpy as jnp
import numpy as np

from qat_jax.models.memory import widened
from qat_jax.search import kernels
from qat_jax.search.bounds import prepare
from qat_jax.search.gallery import parts
from qat_jax.search.rank import rank, rerank, score
from qat_jax.types import Adaptation, as_gallery

TOLERANCE = 2e-6  # what a score may be wrong by, and how near an item must be to the last one found to stand for it
EXTRA = 32  # dimensions that captions add to an item
DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": jnp.bfloat16}


@dataclasses.dataclass(frozen=True)
class Case:
  """One search. What it is made of follows from its fields alone; the first of a field's choices is the simplest."""

  seed: int = 0
  width: int = 8
  directions: int = 0
  queries: int = 1
  items: int = 64
  k: int = 10
  query: str = "random"
  gate: str = "one"
  factors: str = "random"
  gallery: str = "random"
  size: int = 0  # the map is 10^size times as large
  split: int = 0  # left 10^split times as large, right as much smaller
  extra: str = "nothing"
  dtype: str = "float32"
  place: str = "host"
  mask: str = "nothing"


CHOICES: dict[str, tuple] = {
  "width": (8, 2, 3, 24, 64, 300, 1000, 3000),
  "directions": (0, 1, 4, 8, 12, 24),
  "queries": (1, 4),
  "items": (64, 1, 7, 256, 2048, 5000),
  "k": (10, 1, 2, 63, 64, 100, 2048, 6000),
  "query": ("random", "an item"),
  "gate": ("one", "zero", "scaled", "each", "signs", "holes", "steep"),
  "factors": (
    "random",
    "small",
    "steep",
    "flat",
    "blind",
    "cancel",
    "opposite",
    "repeated",
    "nothing",
    "signs",
    "items",
  ),
  "gallery": (
    "random",
    "singular",
    "copies",
    "equal",
    "near blind",
    "near query",
    "opposite",
    "signs",
    "axes",
    "clusters",
  ),
  "size": (0, -1, 1, -6, 6, -18, 18),
  "split": (0, -1, 1, -6, 6, -18, 18),
  "extra": ("nothing", "level", "captions", "both"),
  "dtype": tuple(DTYPES),
  "place": ("host", "map", "stream", "device", "shards", "elsewhere", "shards elsewhere", "shortlist"),
  "mask": ("nothing", "exclude", "flags", "lists", "both", "one left", "none left"),
}
LARGE = 1 << 21  # width × items × queries of the largest case: the others are made smaller
UNUSUAL = {"width": 0.12, "items": 0.25}  # how often the two largest are taken, which are slow


SHAPES = ("width", "directions", "queries", "items", "dtype", "extra")
ALIKE, PLACES = 400, 3  # cases in a row of the same shapes, in so many places, which are compiled for once


def draw(seed: int, number: int) -> Case:
  """Returns the case of a seed and a number."""
  block, own = (np.random.default_rng([seed, *name]) for name in ((0, number // ALIKE), (1, number)))
  chosen: dict[str, Any] = {}
  places = block.choice(len(CHOICES["place"]), PLACES, replace=False)
  for name, values in CHOICES.items():
    rng = block if name in SHAPES else own
    usual = values[:-2] if rng.random() > UNUSUAL.get(name, 1) else values[-2:] if name in UNUSUAL else values
    plain = name in ("size", "split", "extra", "mask", "dtype") and rng.random() < 0.5
    chosen[name] = usual[0 if plain else int(rng.integers(len(usual)))]
  chosen["place"] = CHOICES["place"][own.choice(places)]
  if chosen["factors"] == "blind" and own.random() < 0.6:
    chosen["gallery"] = ("near blind", "signs")[int(own.integers(2))]
  if chosen["factors"] == "opposite" and own.random() < 0.6:
    chosen |= {"gate": "one", "gallery": "singular"}
  if chosen["extra"] != "nothing":  # the map leaves what is beside the items alone
    chosen["size"] = 0
    if chosen["gate"] in ("zero", "scaled"):
      chosen["gate"] = "each"
  while chosen["width"] * chosen["items"] * chosen["queries"] > LARGE:
    chosen["items"] //= 2
  return Case(seed=int(own.integers(1 << 31)), **chosen)


def unit(x: np.ndarray) -> np.ndarray:
  """Returns x (…D) over its length, a zero vector as the first axis."""
  length = np.linalg.norm(x, axis=-1, keepdims=True)
  return np.where(length > 0, x, np.eye(1, x.shape[-1])[0]) / np.where(length > 0, length, 1)


def make(case: Case) -> tuple[Adaptation, np.ndarray, dict[str, np.ndarray], np.ndarray]:
  """Returns the adaptation, the gallery (ND), the masks, and which items each query may find (QN)."""
  rng = np.random.default_rng(case.seed)
  queries, width = case.queries, case.width
  blind_D = unit(rng.choice([-1.0, 1.0], width) if case.gallery == "signs" else rng.standard_normal(width))
  query_QD = unit(rng.standard_normal((queries, width)))
  gate = {
    "one": lambda: np.ones((queries, 1)),
    "zero": lambda: np.zeros((queries, 1)),
    "scaled": lambda: 0.5 + rng.random((queries, 1)),
    "each": lambda: 1 + 0.3 * rng.standard_normal((queries, width)),
    "signs": lambda: rng.choice([-1.0, 1.0], (queries, width)),
    "holes": lambda: rng.choice([0.0, 1.0], (queries, width)),
    "steep": lambda: 10.0 ** rng.uniform(-6, 0, (queries, width)),
  }[case.gate]()
  item_ND = _items(case, rng, query_QD, blind_D)
  if case.query == "an item":
    query_QD = item_ND[rng.integers(0, case.items, queries)]
  left, right = _factors(case, rng, gate, np.float32(blind_D).astype(np.float64), item_ND)
  if case.gallery == "singular":
    item_ND = _singular(case, rng, gate, left, right)
  query_QD, item_ND, left, right, gate = (np.float32(x) for x in (query_QD, item_ND, left, right, gate))
  scale, split = np.float32(10.0**case.size), np.float32(10.0**case.split)
  half = np.float32(10.0 ** (case.size / 2))
  own = Adaptation(query_QD, gate * scale, left * half * split, right * half / split)
  own, item_ND = _beside(case, rng, own, item_ND)
  masks, wanted_QN = _masks(case, rng)
  return own, item_ND.astype(DTYPES[case.dtype]), masks, wanted_QN


def _factors(
  case: Case, rng: np.random.Generator, gate: np.ndarray, blind_D: np.ndarray, item_ND: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  shape = (case.queries, case.width, case.directions)
  left, right = rng.standard_normal((2, *shape)) / np.sqrt(case.width)
  if not case.directions or case.factors == "nothing":
    return left * 0, right
  if case.factors == "small":
    left *= 1e-3
  elif case.factors == "steep":
    left *= 10.0 ** rng.uniform(-7, 1, (case.queries, 1, case.directions))
  elif case.factors == "flat":
    left, right = (np.linalg.qr(x)[0] for x in (left, right))
    left, right = (np.resize(x, shape) if x.shape != shape else x for x in (left, right))
  elif case.factors == "signs":
    left, right = np.sign(left) / np.sqrt(case.width), np.sign(right) / np.sqrt(case.width)
  elif case.factors == "items":  # sums in which nothing cancels, and rounding adds up
    right = np.moveaxis(item_ND[rng.integers(0, case.items, (case.queries, case.directions))], 1, 2)
    left = np.where(rng.random(left.shape) < 0.5, left, right)
  elif case.factors == "blind":  # T = gate (I − (1 − sight) r rᵀ), and what the other directions add
    sight = rng.choice([0, 1e-7, 1e-5, 1e-3, 0.1, 0.25, 0.4], (case.queries, 1))
    left *= rng.choice([0, 1e-6, 1e-3])
    left[:, :, 0] = -(1 - sight) * gate * blind_D
    right[:, :, 0] = blind_D
  elif case.factors == "cancel":
    half = (case.directions + 1) // 2
    factor = 10.0 ** rng.uniform(0, 3)
    rest = left[:, :, half:]
    left = np.concatenate([factor * left[:, :, :half], rest - factor * left[:, :, : case.directions - half]], 2)
    right = np.concatenate([right[:, :, :half], right[:, :, : case.directions - half]], 2)
    left[:, :, case.directions - half : half] /= factor  # an odd one has nothing to cancel with
  elif case.factors == "opposite":
    left = -right * rng.uniform(0.5, 2)
  elif case.factors == "repeated":
    left, right = np.broadcast_to(left[..., :1], shape), np.broadcast_to(right[..., :1], shape)
  return left, right


def _items(case: Case, rng: np.random.Generator, query_QD: np.ndarray, blind_D: np.ndarray) -> np.ndarray:
  items, width = case.items, case.width
  random_ND = unit(rng.standard_normal((items, width)))
  if case.gallery == "copies":
    return random_ND[rng.integers(0, max(1, items // 40), items)]
  if case.gallery == "equal":
    return np.repeat((unit(blind_D + 1e-6 * random_ND) if rng.random() < 0.5 else random_ND)[:1], items, 0)
  if case.gallery == "near blind":
    near_ND = unit(blind_D + 10.0 ** rng.uniform(-8, 0.5, (items, 1)) * random_ND)
    near_ND = np.where(rng.random((items, 1)) < 0.2, near_ND[:1], near_ND)
    return np.where(rng.random((items, 1)) < 0.7, near_ND, random_ND)
  if case.gallery == "near query":
    return unit(query_QD[0] + 10.0 ** rng.uniform(-6, 0, (items, 1)) * random_ND)
  if case.gallery == "opposite":
    return unit(0.3 * random_ND - query_QD[0])
  if case.gallery == "signs":
    turned_ND = rng.random((items, width)) < rng.uniform(0, 0.5, (items, 1))
    return unit(np.where(turned_ND, -1, 1) * np.sign(blind_D))
  if case.gallery == "axes":
    return np.eye(width)[rng.integers(0, width, items)] * rng.choice([-1.0, 1.0], (items, 1))
  if case.gallery == "clusters":
    return unit(random_ND[rng.integers(0, max(1, items // 50), items)] + 1e-3 * random_ND)
  return random_ND


def _singular(
  case: Case, rng: np.random.Generator, gate: np.ndarray, left: np.ndarray, right: np.ndarray
) -> np.ndarray:
  """Returns items near singular directions of the maps, which they make shortest and longest, and mixtures of two."""
  if case.width > 64 or not case.directions:
    direction_ED = np.concatenate([*np.moveaxis(right, 1, 2), np.eye(1, case.width)])
  else:
    map_QDE = np.stack([np.diag(np.broadcast_to(one, case.width)) for one in gate]) + left @ np.moveaxis(right, 1, 2)
    direction_ED = np.linalg.svd(map_QDE)[2].reshape(-1, case.width)
  one_ND, other_ND, random_ND = (
    *direction_ED[rng.integers(0, len(direction_ED), (2, case.items))],
    rng.standard_normal((case.items, case.width)),
  )
  mixed_ND = one_ND + rng.choice([0, 1e-3, 0.1, 1], (case.items, 1)) * other_ND
  return unit(
    rng.choice([-1, 1], (case.items, 1)) * mixed_ND + 10.0 ** rng.uniform(-8, 0, (case.items, 1)) * unit(random_ND)
  )


def _beside(
  case: Case, rng: np.random.Generator, own: Adaptation, item_ND: np.ndarray
) -> tuple[Adaptation, np.ndarray]:
  """Returns query and items with captions and levels beside them, which the map leaves alone."""
  queries, items = case.queries, case.items
  if case.extra == "nothing":
    return own, item_ND
  beside = lambda x, y: np.float32(unit(np.concatenate([x, y], axis=1)))
  if case.extra in ("captions", "both"):
    item_ND = beside(item_ND, 0.6 * unit(rng.standard_normal((items, EXTRA))))
    own = widened(own, beside(own.query, 0.6 * unit(rng.standard_normal((queries, EXTRA)))))
  if case.extra in ("level", "both"):
    level_N = 0.5 * np.abs(rng.standard_normal(items)).clip(max=1.5)
    item_ND = beside(item_ND, np.stack([-level_N, np.sqrt(1 - np.square(level_N))], axis=1))
    own = widened(own, beside(np.asarray(own.query), np.tile([1.0, 0.0], (queries, 1))))
  return jax.tree.map(np.asarray, own), item_ND


def _masks(case: Case, rng: np.random.Generator) -> tuple[dict[str, np.ndarray], np.ndarray]:
  masks, wanted_QN = {}, np.ones((case.queries, case.items), bool)
  if case.mask in ("exclude", "both"):
    masks["exclude"] = rng.integers(-1, case.items, (case.queries, 5))
  elif case.mask in ("one left", "none left"):
    left = case.mask == "one left"
    masks["exclude"] = np.stack([rng.permutation(case.items)[int(left) :] for _ in range(case.queries)])
  for row_N, excluded_E in zip(wanted_QN, masks.get("exclude", []), strict=False):
    row_N[excluded_E[excluded_E >= 0]] = False
  if case.mask in ("flags", "both"):
    masks["allowed"] = rng.random(case.items) < 0.3
    wanted_QN &= masks["allowed"]
  elif case.mask == "lists":
    masks["allowed"] = rng.integers(-1, case.items, (case.queries, 40))
    for row_N, allowed_A in zip(wanted_QN, masks["allowed"], strict=True):
      row_N[:] = np.isin(np.arange(case.items), allowed_A)
  return masks, wanted_QN


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
def _elsewhere() -> Iterator[None]:
  """Makes search take a CPU for an accelerator: the device looks through bounds, and half precision stays as it is."""
  new = {"ON_HOST": (), "BLOCK_ROWS": {}, "AT_ONCE": {}, "FOUND": 64, "_upper_bounds": _upper_bounds_elsewhere}
  old = {name: getattr(kernels, name) for name in new}
  choose = jax.lax.platform_dependent
  try:
    for name, value in new.items():
      setattr(kernels, name, value)
    jax.lax.platform_dependent = lambda *args, default, **_: default(*args)
    yield
  finally:
    jax.lax.platform_dependent = choose
    for name, value in old.items():
      setattr(kernels, name, value)


_upper_bounds_elsewhere = jax.jit(kernels._upper_bounds.__wrapped__, static_argnames=("rows", "block"))


def search(case: Case, own: Adaptation, item_ND: np.ndarray, masks: dict[str, np.ndarray]) -> tuple[np.ndarray, ...]:
  """Returns ids and scores (two QK) of a case, searched where it wants its gallery to lie."""
  with contextlib.ExitStack() as stack:
    gallery: Any = item_ND
    if case.place.endswith("elsewhere"):
      stack.enter_context(_elsewhere())
    if case.place.startswith("shards"):
      mesh = jax.make_mesh((2,), ("gallery",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
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
    elif case.place == "shortlist" and not masks:
      order_QN = np.stack([np.random.default_rng(i).permutation(case.items) for i in range(case.queries)])
      return _padded(rerank(own, gallery, order_QN, case.k), case.k)
    streamed = {"devices": jax.devices()[:2], "chunk_rows": 256} if case.place == "stream" else {}
    return _padded(rank(own, gallery, case.k, **masks, **streamed), case.k)


def _padded(ranking: Any, k: int) -> tuple[np.ndarray, np.ndarray]:
  ids_QK, score_QK = np.asarray(ranking.ids), np.asarray(ranking.scores)
  assert ids_QK.shape == score_QK.shape == (len(ids_QK), k), f"shapes {ids_QK.shape} and {score_QK.shape}"
  return ids_QK, score_QK


def check(case: Case) -> float:
  """Returns by how much a score is off at most; raises AssertionError where a case's ranking is not float64's."""
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
  with _elsewhere() if case.place.endswith("elsewhere") else contextlib.nullcontext():
    _check_bounds(case, own, item_ND, exact_QN - unsure_QN)
  if case.seed % 4 == 0:
    wrong_QN = np.abs(np.asarray(score(own, item_ND)) - exact_QN) - unsure_QN
    assert wrong_QN.max() < TOLERANCE, f"score is off by {wrong_QN.max():.2e}"
  return worst


def _check_bounds(case: Case, own: Adaptation, item_ND: np.ndarray, exact_QN: np.ndarray) -> None:
  """Raises AssertionError where the score of an item exceeds its bounds: whether or not the search would lose it."""
  prepared = prepare(own)
  gallery = jnp.asarray(item_ND) if case.place in ("device", "elsewhere") else item_ND
  for part in parts(as_gallery(gallery), None, 256 if case.place == "stream" else None, case.queries):
    exact_NQ = exact_QN.T[part.first : part.first + part.items]
    uppers = kernels.upper_bounds(prepared.bounds, part, case.queries)
    upper_NQ = np.asarray(uppers.upper)[part.skipped : part.skipped + part.items]
    assert (upper_NQ >= exact_NQ).all(), f"a score exceeds its bound by {(exact_NQ - upper_NQ).max():.2e}"
    if prepared.similar is not None:
      query_P, item_P = np.divmod(np.arange(case.queries * part.items), part.items)
      over_P = exact_NQ[item_P, query_P] - kernels.refined_bounds(prepared, part, query_P, item_P)
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
