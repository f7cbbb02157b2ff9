"""A shard of a gallery on a cluster: what its actors do, where they are, and whether shards fit together."""

import collections
import dataclasses
import functools
import hashlib
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from flax import struct

from qat_jax.adapter import Adapter, load
from qat_jax.cluster.nodes import Slot
from qat_jax.features.store import FeatureStore
from qat_jax.search.copies import in_memory
from qat_jax.search.top import TopK
from qat_jax.search.warming import warm
from qat_jax.search.whole import best_of
from qat_jax.stages import check_same, checksum_of
from qat_jax.types import Adaptation, Gallery, Ranking, check_encoders

CORES = 0.001  # of a node, that Ray sets aside for a shard: it works only while it is asked
CLOSE = 1e-5  # of the largest number: what two programs' float32 may differ by in an adaptation


class PartialRanking(Ranking):
  """The best of the shards that could be asked; `rows` says which of the gallery all queries looked at."""

  rows: tuple[tuple[int, int], ...] = struct.field(
    pytree_node=False, default=()
  )  # which were looked at: first, last + 1


@dataclasses.dataclass(frozen=True)
class Traffic:
  """What went to and from shards so far, in bytes; `asked` counts queries times shards."""

  asked: int = 0
  sent: int = 0
  received: int = 0


@dataclasses.dataclass
class GalleryShard:
  """What an actor does with its folder, which it opens when it is first asked; `reads` is the adapter's fingerprint."""

  path: str
  adapter: str | None
  reads: dict[str, Any] | None
  on_device: bool

  def __call__(self, method: str, state: str | None, *arguments: Any) -> Any:
    """Calls a method; raises OSError where the folder is not in the state that the asking process knows."""
    if state not in (None, self.state):
      raise OSError(f"{self.path} is not what the other nodes have under this name; give all of them the same files")
    return getattr(self, method)(*arguments)

  @functools.cached_property
  def store(self) -> FeatureStore:
    """The folder's features."""
    return FeatureStore.open(self.path)

  @functools.cached_property
  def state(self) -> str:
    """A digest of what the folder says that it holds."""
    what = (self.store.meta, self.store.width, str(self.store.dtype), [shard.rows for shard in self.store.shards])
    return checksum_of(repr(what).encode())

  @functools.cached_property
  def items(self) -> Gallery:
    """What is searched."""
    return in_memory(self.store) if self.on_device else self.store

  @functools.cached_property
  def model(self) -> Adapter:
    """The adapter; raises ValueError where it is another one than the asking process has."""
    assert self.adapter is not None and self.reads is not None
    model = load(self.adapter)
    check_same(self.adapter, model.fingerprint, self.reads, "Give all nodes the same adapter")
    return model

  def about(self) -> dict[str, Any]:
    """Returns what has to fit the other shards."""
    store = self.store
    about = {"rows": len(store), "width": store.width, "dtype": str(store.dtype), "space": store.space}
    return {**about, "encoder": store.encoder, "state": self.state}

  def names(self) -> np.ndarray:
    """Returns a number for each id (N, uint64), none for items that are only numbered."""
    if self.store.id_column is None:
      return np.zeros(0, np.uint64)
    number = lambda name: int.from_bytes(hashlib.blake2b(str(name).encode(), digest_size=8).digest())
    return np.fromiter(map(number, self.store.ids), np.uint64, len(self.store))

  def ids(self) -> np.ndarray:
    """Returns the items' ids (N, object array of str)."""
    return self.store.ids

  def column(self, name: str) -> np.ndarray:
    """Returns a metadata column (N)."""
    return self.store.column(name)

  def rows(self, position_N: np.ndarray) -> np.ndarray:
    """Returns items (ND) by their positions in the shard."""
    return self.store[position_N]

  def warm(self, request: bytes) -> None:
    """Compiles what searches by as many queries as an adaptation has need."""
    warm(pickle.loads(request), self.items)

  def best(self, request: bytes) -> bytes:
    """Returns the best of the shard's items for some queries, by their positions in it."""
    question, k, floor_Q, masks, deep = pickle.loads(request)
    adaptation = question if isinstance(question, Adaptation) else self.model(*question)
    if masks.wanted_N is not None:
      masks = masks._replace(wanted_N=np.unpackbits(masks.wanted_N, count=len(self.store)).astype(bool))
    (top,) = best_of(adaptation, self.items, [TopK.empty(len(adaptation), k, floor_Q)], masks, deep)
    most = int((top.ids >= 0).sum(axis=1).max(initial=0))
    reply = top.ids[:, :most].astype(np.int32), top.scores[:, :most]
    return pickle.dumps(reply, pickle.HIGHEST_PROTOCOL)


def lightest(adapter: Adapter | None, adaptation: Adaptation) -> Adaptation | tuple[np.ndarray, str]:
  """Returns the least that a shard which knows the adapter has to be told of some queries (on the host).

  That is their frozen features and their type, if the adapter makes of them what the adaptation has, to `CLOSE`;
  otherwise the adaptation.
  """
  frozen_QD, whole = adaptation.frozen, adaptation.replace(frozen=None)
  if adapter is None or frozen_QD is None or frozen_QD.shape[1] != adapter.width:
    return whole
  for query_type, head in adapter.heads.items():
    if head.space == whole.space and _close(adapter(frozen_QD, query_type), whole):
      return np.asarray(frozen_QD), query_type
  return whole


def _close(one: Adaptation, other: Adaptation) -> bool:
  """Says whether two adaptations are the same to `CLOSE`, each query's arrays by their largest number."""
  for name in ("query", "gate", "left", "right"):
    x, y = (np.asarray(getattr(of, name)) for of in (one, other))
    if x.shape != y.shape:
      return False
    x, y = x.reshape(len(x), -1), y.reshape(len(y), -1)
    if not (np.abs(x - y).max(axis=1, initial=0) <= CLOSE * np.abs(y).max(axis=1, initial=0)).all():
      return False
  return True


def rooms(slots: list[Slot], shards: int, replicas: int) -> list[list[Slot]]:
  """Returns where the actors of each shard are: replicas on nodes of their own as far as there are so many."""
  before: collections.Counter[str] = collections.Counter()
  order = []
  for slot in slots:
    order.append((before[slot.node], slot.node))
    before[slot.node] += 1
  slots = [slot for _, slot in sorted(zip(order, slots, strict=True), key=lambda both: both[0])]
  share = -(-shards * replicas // len(slots))  # actors a slot
  if share > 1 and any("TPU" in slot.resources for slot in slots):
    raise ValueError(f"{shards * replicas} actors for {len(slots)} TPU hosts, which take one each; give larger shards")
  parts = {"GPU": np.floor(1e4 / share) / 1e4, "CPU": CORES}
  shared = [
    slot._replace(resources={name: float(parts.get(name, amount)) for name, amount in slot.resources.items()})
    for slot in slots
  ]
  return [[shared[(place + copy) % len(shared)] for copy in range(replicas)] for place in range(shards)]


def check_shards_alike(paths: Sequence[str], about: Sequence[dict[str, Any]]) -> None:
  """Raises ValueError that names two shards which differ in width, space or encoder; `about` is of each."""
  for place, (path, other) in enumerate(zip(paths, about, strict=True)):
    for name in ("width", "space"):
      if other[name] != about[0][name]:
        raise ValueError(
          f"the shards differ in {name}: {paths[0]} has {about[0][name]!r}, {path} has {other[name]!r}; give folders "
          "of one encoder, prepared alike"
        )
    for before in range(place):
      check_encoders(f"shard {paths[before]}", about[before]["encoder"], f"shard {path}", other["encoder"])


def check_names(
  paths: Sequence[str], names: Sequence[np.ndarray], ids_of: Callable[[set[int]], Sequence[np.ndarray]]
) -> None:
  """Raises ValueError that names an id which occurs twice; `names` has a number for each id, a shard each.

  Where numbers are equal, `ids_of` gives the ids of those shards, to see.
  """
  place_N, name_N = np.repeat(np.arange(len(names)), [len(name) for name in names]), np.concatenate(names)
  order_N = np.argsort(name_N, kind="stable")
  twice_N = np.flatnonzero(name_N[order_N][1:] == name_N[order_N][:-1])
  if not len(twice_N):
    return
  first, second = (int(place_N[order_N[twice_N[0] + offset]]) for offset in (0, 1))
  unique, count = np.unique(np.concatenate(ids_of({first, second})).astype(str), return_counts=True)
  if (count > 1).any():
    where = f"{paths[first]} and {paths[second]}" if first != second else paths[first]
    raise ValueError(
      f"the id {str(unique[count > 1][0])!r} occurs more than once in {where} ({len(twice_N)} such ids in all); give "
      "each item its own, and each folder once"
    )
