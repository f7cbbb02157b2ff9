"""What kept marks teach: the query that is asked again goes towards what was marked, and its items take its words.

Two ways are tried for each query type, with a few settings each. *Memory*: the form `marked` around the head. *Words*:
a text head that remembers captions takes the marks among its pairs, so the marked items are called as they were asked
for. A way is kept only if it holds twice. Marks that were held out must be ranked better when their query is asked
again: half of a query's marks teach, the other half is looked for, and the other way round. And the validation queries
of the adapter, which nobody marked, must not lose more than the 95 % interval of their difference.
"""

import base64
import collections
import dataclasses
import itertools
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from qat_jax.adaptation import unit
from qat_jax.adapter import Adapter
from qat_jax.features.retrieval_set import Split
from qat_jax.features.store import FeatureStore
from qat_jax.fit.parts import beside
from qat_jax.fit.training import evenly
from qat_jax.marks import MOST
from qat_jax.metrics import paired_interval
from qat_jax.models.head import Head
from qat_jax.models.memory import PAIRS
from qat_jax.search.sums import is_identity
from qat_jax.types import QUERY_TYPES, Adaptation, Relevance, check_encoders
from qat_jax.validation import Validator

TEMPERATURE, WEIGHT = (0.003, 0.02), (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
LEAST = 20  # queries with two right marks, which one query type needs
PAIRS_MOST = 1 << 15  # marks that are remembered for a query type
ITEMS = 1 << 14  # of the gallery, beside all marked ones, that held-out marks are looked for among
QUERIES = 1000  # of validation
SAMPLE = 4096  # items that say how a head's scores depend on frozen features


class MarkedQueries(NamedTuple):
  """Queries of one type that were marked: their features, and the positions of what is right for each."""

  query_QD: np.ndarray
  right: list[np.ndarray]

  def pairs(self, gallery: FeatureStore, fold: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Returns the marks as pairs of a query and an image (two MD); `fold` 0 or 1: only half of each query's."""
    lists = self.right if fold is None else [half(own, fold) for own in self.right]
    owner_M, item_M = np.repeat(np.arange(len(lists)), [len(one) for one in lists]), np.concatenate(lists)
    rows = evenly(len(item_M), PAIRS_MOST)
    return self.query_QD[owner_M[rows]], np.asarray(gallery[item_M[rows]], np.float32)


def learn(
  adapter: Adapter, marks: Iterable[Mapping[str, Any]], gallery: FeatureStore, val: Split
) -> tuple[Adapter, dict[str, str]]:
  """Returns the adapter with what marks teach its heads, and an account of each query type in words.

  The adapter is the same where nothing is kept; else `info["learned"]` has the accounts.

  Args:
    adapter: trained, not one that `learn` made: marks stay in their folder, so they are all learned anew.
    marks: records as `qat_jax.keeping.read_marks` yields them.
    gallery: the frozen features of the items that were marked; marks of items that are gone are left out.
    val: the split that the adapter was validated on.

  Raises ValueError for an adapter that learned already, for marks or features of another encoder, and where no query
  type has LEAST queries with two right marks.
  """
  if "learned" in adapter.info:
    raise ValueError("the adapter was made by `learn`; give the one that it was made from, with all marks")
  for name, store in (("the gallery", gallery), ("the validation gallery", val.gallery)):
    check_encoders(name, store.encoder, "the adapter", adapter.encoder)
  asked, left_out = marked_queries(marks, gallery, adapter)
  heads, accounts = dict(adapter.heads), {}
  for name, one in asked.items():
    both = sum(len(own) > 1 for own in one.right)
    if both < LEAST:
      accounts[name] = f"{both} queries have two right marks, which {LEAST} should have"
    else:
      heads[name], accounts[name] = _taught(adapter, name, one, gallery, val)
  if not any(len(own.right) and sum(len(o) > 1 for o in own.right) >= LEAST for own in asked.values()):
    why = "; ".join(f"{name}: {account}" for name, account in accounts.items()) or "there are none of its query types"
    raise ValueError(f"the marks teach nothing ({why}; left out: {left_out or 'none'}); collect more marks")
  if heads == adapter.heads:
    return adapter, accounts
  return Adapter(
    adapter.width, heads, adapter.info | {"learned": accounts | {"left out": left_out}}, adapter.planted
  ), accounts


def marked_queries(
  marks: Iterable[Mapping[str, Any]], gallery: FeatureStore, adapter: Adapter
) -> tuple[dict[str, MarkedQueries], str]:
  """Returns the marked queries by type, and in words what was left out.

  Left out are marks of items that are gone, those that others contradict, those of searches told in words or in several
  parts, and all but MOST of a query. Raises ValueError for marks of another encoder or width.
  """
  signs: dict[tuple[str, str], dict[str, set[bool]]] = {}
  out: collections.Counter[str] = collections.Counter()
  for record in marks:
    query = record["query"]
    encoder = record.get("encoder")
    check_encoders("a mark", tuple(encoder) if encoder else None, "the adapter", adapter.encoder)
    if record.get("told") or query.get("type") not in adapter.heads:
      out["of searches in several parts or in words, or of other query types"] += 1
      continue
    items = signs.setdefault((query["type"], query["feature"]), {})
    items.setdefault(record["item"], set()).add(bool(record["right"]))
  names = sorted({item for items in signs.values() for item in items})
  place = pc.index_in(pa.array(names, pa.string()), value_set=gallery.arrow_ids().combine_chunks()).fill_null(-1)
  position = dict(zip(names, place.to_pylist(), strict=True))
  made: dict[str, MarkedQueries] = {}
  for query_type in [name for name in QUERY_TYPES if name in adapter.heads]:
    features, right = [], []
    for (own_type, feature), items in sorted(signs.items()):
      if own_type != query_type:
        continue
      out["of items that are gone"] += sum(position[item] < 0 for item in items)
      out["that others contradict"] += sum(len(both) == 2 for both in items.values())
      own = np.array(sorted(position[i] for i, both in items.items() if both == {True} and position[i] >= 0), int)
      out[f"beyond {MOST} of a query"] += max(0, len(own) - MOST)
      if len(own):
        features.append(_row(feature, gallery.width))
        right.append(own[evenly(len(own), MOST)])
    if features:
      made[query_type] = MarkedQueries(unit(np.stack(features), np.float32), right)
  return made, ", ".join(f"{count:,} {what}" for what, count in out.items() if count)


def _row(feature: str, width: int) -> np.ndarray:
  data = base64.b64decode(feature)
  row_D = np.frombuffer(data[: len(data) // 2 * 2], "<f2").astype(np.float32)
  if len(row_D) != width or not np.isfinite(row_D).all() or not row_D.any():
    raise ValueError(f"a mark's query is {len(row_D)} wide, or NaN, or zero; the gallery is {width} wide")
  return row_D


def half(own: np.ndarray, fold: int) -> np.ndarray:
  """Returns every other mark of a query, in an order that its positions shuffle; all of a single one."""
  if len(own) < 2:
    return own
  return np.random.default_rng(own.tolist()).permutation(own)[fold::2]


def _taught(
  adapter: Adapter, query_type: str, asked: MarkedQueries, gallery: FeatureStore, val: Split
) -> tuple[Head, str]:
  """Returns what serves a query type from now on, the head itself where nothing holds, and the account."""
  head, image = adapter.heads[query_type], adapter.heads.get("image")
  back_FD = None if image is None or image is head else pulled_back(image, gallery)
  tests = [_held_out(asked, gallery, fold) for fold in (0, 1)]
  everything = asked.pairs(gallery)
  lessons = [asked.pairs(gallery, 0), asked.pairs(gallery, 1), everything]
  others = Validator.of(val, query_type, QUERIES, 0)
  before_FQ, others_Q = [test.precisions(head) for test in tests], others.precisions(head)
  best, best_gain, held = head, 0.0, "nothing is kept: no way gains on marks held out without a loss of other queries"
  for way in _ways(head, query_type):
    made = [taught(head, image, pairs, way, back_FD) for pairs in lessons]
    gain_Q = np.mean([t.precisions(one) - b for t, one, b in zip(tests, made, before_FQ, strict=False)], axis=0)
    again, rest = paired_interval(gain_Q, 0 * gain_Q), paired_interval(others.precisions(made[2]), others_Q)
    if again[0] > best_gain and again[1] > 0 and rest[2] >= 0:
      figures = [f"{100 * mean:+.1f} [{100 * low:.1f}, {100 * high:.1f}]" for mean, low, high in (again, rest)]
      best, best_gain = made[2], again[0]
      held = f"{way.told}: mAP × 100 of marks held out {figures[0]}, of other queries {figures[1]}"
  account = f"{len(asked.right):,} queries with {len(everything[0]):,} right marks; {held}"
  return (head if best is head else dataclasses.replace(best, note=f"{head.note}; learned from {account}")), account


def _held_out(asked: MarkedQueries, gallery: FeatureStore, fold: int) -> Validator:
  """Returns the queries with two right marks: those of one half are looked for, those of the other do not count."""
  some = [query for query, own in enumerate(asked.right) if len(own) > 1]
  rows = np.union1d(np.concatenate(asked.right), evenly(len(gallery), ITEMS))
  at = lambda fold: [np.searchsorted(rows, half(asked.right[query], fold)) for query in some]
  return Validator(asked.query_QD[some], np.asarray(gallery[rows]), Relevance(at(1 - fold), at(fold)), 0, 0)


class Way(NamedTuple):
  """How marks are kept: as words of their items, in a memory of queries, or both."""

  words: bool
  weight: float = 0.0  # of the memory; 0: none
  temperature: float = 1.0

  @property
  def told(self) -> str:
    """The way in words."""
    memory = [f"a memory of weight {self.weight}, temperature {self.temperature}"] if self.weight else []
    return " and ".join(memory + ["words of the items"] * self.words)


def _ways(head: Head, query_type: str) -> list[Way]:
  """Returns the ways to try: words only where the head, or the one that it levels, has captions by texts of pairs."""
  own = _beneath(head)
  words = query_type == "text" and own.form == "remembering" and own.settings.get("captions") == "text"
  memory = list(itertools.product(WEIGHT, TEMPERATURE))
  return [Way(False, *one) for one in memory] + ([Way(True), *(Way(True, *one) for one in memory)] if words else [])


def taught(
  head: Head, image: Head | None, pairs: tuple[np.ndarray, np.ndarray], way: Way, back_FD: np.ndarray | None = None
) -> Head:
  """Returns a head with what marks teach it; the levels of items stay.

  Args:
    head: of the queries that were marked.
    image: of image queries, the same object where it is the one that is taught.
    pairs: a query and an image each (two MD).
    way: how they are kept.
    back_FD: what `pulled_back` makes of the image head, where another one is taught.
  """
  beneath = _beneath(head)
  through = beneath if image is head else None if image is None else _beneath(image)
  told = _with_words(beneath, pairs) if way.words else beneath
  changed = _with_memory(told, through, pairs, way, back_FD)
  if head.form != "levelled":
    return changed
  levels = {name: array for name, array in head.variables["constants"].items() if name != "head"}
  return Head("levelled", head.settings | {"form": changed.form, "settings": changed.settings}, beside(changed, levels))


def pulled_back(image: Head, gallery: Any) -> np.ndarray | None:
  """Returns the map (FD) of a head's queries to vectors whose products with frozen items are most like its scores.

  By least squares over a sample of the gallery; exact but for a constant where the head's items are a linear map of the
  frozen ones. None where the gallery is too small to tell.
  """
  rows = evenly(len(gallery), SAMPLE)
  row_ND = unit(np.asarray(gallery[rows]))
  if len(rows) < 2 * row_ND.shape[1]:
    return None
  item_NF = np.asarray(_beneath(image).prepare(row_ND.astype(np.float32)), np.float64)
  coefficient_EF = np.linalg.lstsq(np.pad(row_ND, ((0, 0), (0, 1)), constant_values=1), item_NF, rcond=1e-6)[0]
  return coefficient_EF[:-1].T


def _beneath(head: Head) -> Head:
  """Returns the head that a levelled one is around; another one as it is."""
  return head.inner if head.form == "levelled" else head


def _with_words(head: Head, pairs: tuple[np.ndarray, np.ndarray]) -> Head:
  """Returns the head with more pairs behind those that it remembers."""
  constants = dict(head.variables["constants"])
  for name, row_MD in zip(PAIRS, pairs, strict=True):
    constants[name] = jnp.concatenate([jnp.asarray(constants[name]), jnp.asarray(unit(row_MD), jnp.float16)])
  settings = head.settings | {"pairs": head.settings["pairs"] + len(pairs[0])}
  return Head(head.form, settings, head.variables | {"constants": constants})


def _with_memory(
  head: Head, image: Head | None, pairs: tuple[np.ndarray, np.ndarray], way: Way, back_FD: np.ndarray | None
) -> Head:
  """Returns the form `marked` around the head; the head itself where the way has no weight."""
  if not way.weight:
    return head
  rows = {"queries": pairs[0], "targets": _targets(head, image, pairs[1], back_FD)}
  constants = {name: jnp.asarray(unit(row_MD), jnp.float16) for name, row_MD in rows.items()}
  constants |= {name: jnp.float32(getattr(way, name)) for name in ("weight", "temperature")}
  inside = {"form": head.form, "settings": head.settings, "pairs": len(pairs[0]), "items": rows["targets"].shape[1]}
  return Head("marked", inside, beside(head, constants))


def _targets(head: Head, image: Head | None, image_MD: np.ndarray, back_FD: np.ndarray | None) -> np.ndarray:
  """Returns what finds the instances of marked images among a head's items (ME): the queries of the image head.

  In another head, whose items have to begin with the frozen features, these are pulled back, and what follows is 0.
  Where that cannot be, and where image queries have maps of their own, a marked image is looked for as an item.
  """
  item_ME, width = np.asarray(head.prepare(image_MD)), image_MD.shape[1]
  if image is None:
    return item_ME
  through = image.module(width).apply(image.variables, jnp.asarray(image_MD))
  assert isinstance(through, Adaptation)
  if not is_identity(through):
    return item_ME
  if image is head:
    return np.asarray(through.query)
  if back_FD is None or not np.allclose(unit(item_ME[:, :width]), unit(image_MD), atol=1e-3):
    return item_ME
  return np.pad(np.asarray(through.query) @ back_FD, ((0, 0), (0, item_ME.shape[1] - width)))
