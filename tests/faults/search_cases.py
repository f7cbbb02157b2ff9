"""Cases for the hunt of `tests.faults.search`: maps, galleries, masks, drawn to be as awkward as float32 allows."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qat_jax.models.memory import with_wider_query
from qat_jax.types import Adaptation

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
  maps: str = "each"


CHOICES: dict[str, tuple] = {
  "width": (8, 2, 3, 24, 64, 300, 1000, 3000),
  "directions": (0, 1, 4, 8, 12, 24, 40),
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
    "huge dimensions",
    "constant dimensions",
    "subnormal",
  ),
  "size": (0, -1, 1, -6, 6, -18, 18),
  "split": (0, -1, 1, -6, 6, -18, 18),
  "extra": ("nothing", "level", "captions", "both"),
  "dtype": tuple(DTYPES),
  "place": ("host", "map", "stream", "device", "shards", "elsewhere", "shards elsewhere", "shortlist", "copied"),
  "mask": ("nothing", "exclude", "flags", "lists", "both", "one left", "none left"),
  "maps": ("each", "one"),  # of each query, or of all
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
  if case.maps == "one":
    gate, left, right = (np.repeat(x[:1], queries, axis=0) for x in (gate, left, right))
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
  if case.gallery == "huge dimensions":  # in a cone, as CLIP's are
    scale_D = np.where(rng.random(width) < 0.1, 10.0 ** rng.uniform(0, 4), 1)
    return unit(scale_D * (rng.standard_normal(width) + rng.choice([0.01, 1]) * rng.standard_normal((items, width))))
  if case.gallery == "constant dimensions":
    return unit(np.where(rng.random(width) < 0.5, rng.standard_normal(width) / np.sqrt(width), random_ND))
  if case.gallery == "subnormal":
    return unit(np.where(rng.random((items, width)) < 0.7, 1e-41, 1) * random_ND)
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
    own = with_wider_query(own, beside(own.query, 0.6 * unit(rng.standard_normal((queries, EXTRA)))))
  if case.extra in ("level", "both"):
    level_N = 0.5 * np.abs(rng.standard_normal(items)).clip(max=1.5)
    item_ND = beside(item_ND, np.stack([-level_N, np.sqrt(1 - np.square(level_N))], axis=1))
    own = with_wider_query(own, beside(np.asarray(own.query), np.tile([1.0, 0.0], (queries, 1))))
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
