"""A gallery whose shards lie on the machines of a cluster: each runs the search loop on its own, and rankings merge.

What travels to a shard is the queries alone where the shards know the adapter, else their adaptations, and the k-th
best scores found so far; back come positions and scores. No item's feature does.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import os
import pickle
import threading
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any

import jax
import numpy as np
import numpy.typing as npt

from qat_jax.adapter import check_queries, load
from qat_jax.cluster.crew import MOST_LOST, Answer, Crew, Lost
from qat_jax.cluster.nodes import all_slots, connect, first_line
from qat_jax.distributed.gallery_shard import (
  GalleryShard,
  PartialRanking,
  Traffic,
  check_names,
  check_shards_alike,
  lightest,
  rooms,
)
from qat_jax.search.exact import DEEP
from qat_jax.search.masks import Masks
from qat_jax.search.top import TopK
from qat_jax.search.whole import blocks, ranking_of
from qat_jax.types import Adaptation, EncoderName, Ranking, check_encoders


class Gallery:
  """N items in the feature folders `paths`, in their order: positions go on from one folder to the next.

  `qat_jax.rank` and `qat_jax.rerank` take it like any other, with the same result; `search` takes queries.
  """

  def __init__(
    self,
    paths: Sequence[str | os.PathLike],
    cluster: str = "auto",
    *,
    adapter: str | os.PathLike | None = None,
    replicas: int = 1,
    partial: bool = False,
    on_device: bool = False,
    patience: float = 60.0,
  ) -> None:
    """Has actors of the cluster open the folders, which their nodes must see under the same paths.

    Args:
      paths: folders of features, a shard each.
      cluster: "auto", or "ray://HOST:PORT" (docs/scale.md).
      adapter: a run's folder or an adapter's, which all nodes see; `search` needs it, and `rank` sends less with it.
      replicas: how many actors open each shard, on nodes of their own as far as there are so many.
      partial: where a shard cannot answer, rank the others and say so (`PartialRanking`), instead of an error.
      on_device: hold the shards' rows on their devices; otherwise they are read at each search.
      patience: seconds to wait for a shard whose actors are all lost.

    Raises ValueError that names two folders where they differ in width, space or encoder, or share an id; OSError that
    names folder and node where one cannot be opened; and what `qat_jax.cluster.nodes.connect` does.
    """
    if not paths or replicas < 1:
      raise ValueError(f"{len(paths)} folders, {replicas} replicas; give at least one of each")
    self.paths, self.partial, self.patience = [os.fspath(path) for path in paths], partial, patience
    self.replicas = replicas
    self.adapter = None if adapter is None else load(adapter)
    reads = None if self.adapter is None else self.adapter.fingerprint
    known = None if adapter is None else os.fspath(adapter)
    here = [GalleryShard(path, known, reads, on_device) for path in self.paths]
    where = rooms(all_slots(connect(cluster)), len(here), replicas)
    self._lock, self.traffic, self._starts = threading.Lock(), Traffic(), [0]
    self._crew = Crew(cluster, here, where)
    try:
      about = self._all("about")
      self._states = [about[place]["state"] for place in range(len(here))]
      self._starts = np.concatenate([[0], np.cumsum([about[place]["rows"] for place in range(len(here))])]).tolist()
      check_shards_alike(self.paths, [about[place] for place in range(len(here))])
      self.width, self.space = about[0]["width"], str(about[0]["space"])
      self.dtype = np.result_type(*(one["dtype"] for one in about.values()))
      self.encoder: EncoderName | None = next((one["encoder"] for one in about.values() if one["encoder"]), None)
      names, ids_of = self._all("names"), lambda places: list(self._all("ids", dict.fromkeys(places, ())).values())
      check_names(self.paths, [names[place] for place in range(len(here))], ids_of)
    except BaseException:
      self.close()
      raise

  def __len__(self) -> int:
    return self._starts[-1]

  def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
    """Returns rows (ND), which travel; ranking does without."""
    position_N = np.arange(len(self))[rows] if isinstance(rows, slice) else np.asarray(rows)
    if position_N.size and not 0 <= position_N.min() <= position_N.max() < len(self):
      raise IndexError(f"positions {position_N.min()} to {position_N.max()} asked of {len(self)} items; −1 is padding")
    place_N = np.searchsorted(self._starts, position_N, "right") - 1
    all_ND = np.empty((len(position_N), self.width), self.dtype)
    order = {place: np.flatnonzero(place_N == place) for place in np.unique(place_N).tolist()}
    for place, rows_ND in self._all("rows", {p: (position_N[i] - self._starts[p],) for p, i in order.items()}).items():
      all_ND[order[place]] = rows_ND
    return all_ND

  @functools.cached_property
  def ids(self) -> np.ndarray:
    """The items' ids (N, object array of str), which travel once."""
    ids = self._all("ids")
    return np.concatenate([ids[place] for place in sorted(ids)])

  def column(self, name: str) -> np.ndarray:
    """Returns a metadata column (N), which travels."""
    columns = self._all("column", dict.fromkeys(range(len(self.paths)), (name,)))
    return np.concatenate([columns[place] for place in sorted(columns)])

  def rank(self, adaptation: Adaptation, k: int, masks: Masks) -> Ranking:
    """Returns what `qat_jax.rank` does, of arguments that it has checked.

    Where the gallery's adapter makes the same maps of the adaptation's `frozen` queries, to `CLOSE`, those travel.
    """
    host = jax.tree.map(np.asarray, adaptation)
    light = {block: lightest(self.adapter, host[block.start : block.stop]) for block in blocks(len(adaptation))}
    return self._rank(light.__getitem__, len(adaptation), k, masks)

  def search(
    self,
    query_QD: npt.ArrayLike,
    k: int = 100,
    query_type: str | None = None,
    *,
    exclude: npt.ArrayLike | None = None,
    allowed: npt.ArrayLike | None = None,
  ) -> Ranking:
    """Returns the exact top k of queries (QD, frozen features), which every shard adapts by itself.

    What travels is a feature a query and shard, whatever the adapter's rank; queries are adapted 64 at a time.
    `exclude` and `allowed` are as `rank` has them. Raises ValueError as `Adapter` and `rank` do, and where the
    gallery was opened without an adapter.
    """
    if self.adapter is None:
      raise ValueError("this gallery knows no adapter; open it with Gallery(paths, adapter=…), or use qat_jax.rank")
    query_QD = np.asarray(query_QD)
    check_queries(query_QD, self.adapter.width)
    head = self.adapter.head(query_type)
    check_encoders("the adapter", self.adapter.encoder, "the gallery", self.encoder)
    if self.space != head.space or self.width != head.items_wide(self.adapter.width) or k < 1:
      raise ValueError(
        f"the gallery is in the space {self.space!r}, {self.width} wide, k is {k}; wanted the space {head.space!r}, "
        f"{head.items_wide(self.adapter.width)} wide, k at least 1: use adapter.prepare for each folder"
      )
    masks = Masks.of(exclude, allowed, len(query_QD), len(self))
    return self._rank(lambda block: (query_QD[block.start : block.stop], query_type), len(query_QD), k, masks)

  def warm(self, adaptation: Adaptation) -> None:
    """Has all actors compile what searches by as many queries as an adaptation has need."""
    request = pickle.dumps(jax.tree.map(np.asarray, adaptation), pickle.HIGHEST_PROTOCOL)
    self._all("warm", dict.fromkeys(range(len(self.paths)), (request,)), self.replicas)

  def close(self) -> None:
    """Ends the actors."""
    self._crew.close()

  def __enter__(self) -> Gallery:
    return self

  def __exit__(self, kind: type | None, error: BaseException | None, where: TracebackType | None) -> None:
    self.close()

  def _rank(self, asked_of: Callable[[range], Any], queries: int, k: int, masks: Masks) -> Ranking:
    """Returns the ranking of blocks of queries, which go from shard to shard, each time with what was found so far."""
    query_blocks, places = blocks(queries), range(len(self.paths))
    best = [TopK.empty(len(block), min(k, len(self))) for block in query_blocks]
    request = functools.partial(self._request, asked_of, query_blocks, masks, best, k >= DEEP * len(self))
    tasks = [
      _Task(place, number, functools.partial(request, place, number))
      for place in places
      # each shard begins with another block
      for number in sorted(range(len(query_blocks)), key=lambda number: (number - place) % len(query_blocks))
    ]
    with self._lock:
      unable: set[int] = set()
      for task, reply in self._run(tasks, -(-len(places) // len(query_blocks)), unable):
        ids_QK, score_QK = pickle.loads(reply)
        ids_QK = np.where(ids_QK < 0, -1, ids_QK.astype(np.int64) + self._starts[task.place])
        best[task.group] = best[task.group].merge(TopK(ids_QK, score_QK, best[task.group].floor))
        self._count(received=len(reply))
    ranking = ranking_of(best, k, len(self))
    if not self.partial:
      return ranking
    rows = tuple((self._starts[place], self._starts[place + 1]) for place in places if place not in unable)
    return PartialRanking(ranking.ids, ranking.scores, rows=rows)

  def _request(
    self,
    asked_of: Callable[[range], Any],
    query_blocks: list[range],
    masks: Masks,
    best: list[TopK],
    deep: bool,
    place: int,
    number: int,
  ) -> tuple:
    block, top = query_blocks[number], best[number]
    theirs = masks.of_queries(block).within(self._starts[place], self._starts[place + 1] - self._starts[place])
    wanted = None if theirs.wanted_N is None else np.packbits(theirs.wanted_N)
    request = (asked_of(block), top.ids.shape[1], top.threshold, theirs._replace(wanted_N=wanted), deep)
    sent = pickle.dumps(request, pickle.HIGHEST_PROTOCOL)
    self._count(asked=len(block), sent=len(sent))
    return "best", self._states[place], sent

  def _count(self, **more: int) -> None:
    self.traffic = Traffic(**{name: value + more.get(name, 0) for name, value in vars(self.traffic).items()})

  def _all(self, method: str, given: dict[int, tuple] | None = None, copies: int = 1) -> dict[int, Any]:
    """Returns what a method of each shard gives, or of those that arguments are given for, by its place.

    Idle actors are asked, `copies` of each shard at once.
    """
    states: Sequence[str | None] = getattr(self, "_states", [None] * len(self.paths))
    given = dict.fromkeys(range(len(self.paths)), ()) if given is None else given
    question = lambda place: (method, states[place], *given[place])
    tasks = [_Task(place, 0, functools.partial(question, place)) for place in given for _ in range(copies)]
    with self._lock:
      return {task.place: answer for task, answer in self._run(tasks, len(tasks), None)}

  def _run(self, tasks: Sequence[_Task], at_once: int, unable: set[int] | None) -> Iterator[tuple[_Task, Any]]:
    """Yields tasks with their answers, so many of a group being asked at once.

    A lost actor's is asked again. Shards that cannot answer are put into `unable` where there are to be partial
    rankings, and are an error that names them elsewhere.
    """
    left: dict[int, list[_Task]] = {task.place: [] for task in tasks}
    for task in tasks:
      left[task.place].append(task)
    running, losses, why = collections.Counter[int](), collections.Counter[_Task](), dict[int, BaseException]()
    pending, call = set[_Task](), object()
    while pending or any(left.values()):
      for place, waiting in left.items():
        while self._crew.idle(place):
          ready = [task for task in waiting if running[task.group] < at_once]
          if not ready:
            break
          task = ready[0]
          waiting.remove(task)
          pending.add(task)
          running[task.group] += 1
          self._crew.ask(place, (call, task), *task.arguments())
      for answer in self._crew.answers():
        whose, task = answer.question
        if whose is not call:  # of a call that ended with an error
          continue
        pending.remove(task)
        running[task.group] -= 1
        if not isinstance(answer.value, BaseException | Lost):
          yield task, answer.value
          continue
        why[task.place] = self._failure(answer)
        losses[task] += 1
        left[task.place].insert(0, task)
      for place, waiting in left.items():
        lost = max((losses[task] for task in waiting), default=0)
        if waiting and (lost >= MOST_LOST or self._crew.gone(place) > self.patience):
          self._give_up(place, why.get(place), unable)
          waiting.clear()

  def _failure(self, answer: Answer) -> BaseException:
    """Returns what another actor may do better; raises what none will."""
    path = self.paths[answer.member.place]
    if isinstance(answer.value, Lost):
      return answer.value.why
    if isinstance(answer.value, OSError):  # of this node alone, it may be
      self._crew.retire(answer.member)
      return answer.value
    if isinstance(answer.value, ValueError):
      raise ValueError(f"shard {path}: {answer.value}") from answer.value
    raise answer.value

  def _give_up(self, place: int, why: BaseException | None, unable: set[int] | None) -> None:
    reason = first_line(why) if why else f"no actor of it answers for {self.patience:g} s"
    if unable is None or not self.partial or len(unable) + 1 == len(self.paths):
      rows = f" (rows {self._starts[place]} to {self._starts[place + 1] - 1})" if len(self._starts) > 1 else ""
      raise ConnectionError(
        f"shard {self.paths[place]}{rows} cannot be asked: {reason}. Mend that and ask again; replicas=2 outlives a "
        "node, partial=True ranks the rest"
      ) from why
    unable.add(place)


@dataclasses.dataclass(frozen=True, eq=False)
class _Task:
  """A question to a shard; of a group, such as a block of queries, only so many are asked at once."""

  place: int
  group: int
  arguments: Callable[[], tuple]  # called when it is asked
