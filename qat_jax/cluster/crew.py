"""Actors of a cluster, each of which answers one question at a time and may be lost at any moment.

Each place (a shard of a gallery, or the only stage) has one or several actors. A question to a lost actor comes back as
`Lost`, and the caller asks again. The actor is started anew, on another node if its own is gone.
"""

import collections
import dataclasses
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from qat_jax.cluster.nodes import Slot, all_slots, cause, connect, first_line, starter

QUIET_SECONDS = 60  # between two lines of the log while no node is free
AGAIN_SECONDS = 0.3  # between two requests to an actor that is being restarted
MOST_LOST = 5  # actors that die of one question before it counts as its fault
MOST_STARTS = 20  # starts of an actor that never answers

_log = logging.getLogger(__name__)


@dataclasses.dataclass(eq=False)
class Member:
  """An actor of a place."""

  place: int
  start: Callable[[], Any]
  actor: Any
  there: bool = False  # it answered, and was not lost since
  idle: bool = False
  losses: int = 0  # since it last answered
  gone_since: float = dataclasses.field(default_factory=time.monotonic)


@dataclasses.dataclass(frozen=True)
class Lost:
  """The answer of an actor that is gone."""

  why: BaseException


@dataclasses.dataclass(frozen=True)
class Answer:
  """The value that a place's function returned, the error that it raised, or `Lost`."""

  question: Any
  value: Any
  member: Member


class Crew:
  """The actors of some places, each of which has a function and one or several slots."""

  def __init__(self, address: str, functions: Sequence[Callable], slots: Sequence[Sequence[Slot]]) -> None:
    self._ray = ray = connect(address)
    self._members: list[list[Member]] = []
    self._asked: dict[Any, tuple[Member, Any]] = {}  # reference → who, and the question; None: whether it is there
    self._waking: list[tuple[float, Member]] = []  # when to ask that
    for place, (function, rooms) in enumerate(zip(functions, slots, strict=True)):
      start = starter(ray, ray.put(ray.cloudpickle.dumps(function)))
      starts: list[Callable[[], Any]] = [lambda slot=slot, start=start: start(slot) for slot in rooms]  # type: ignore[misc]
      self._members.append([Member(place, start, start()) for start in starts])
    self._waking = [(0.0, member) for members in self._members for member in members]

  def idle(self, place: int) -> bool:
    """Says whether an actor of a place has nothing to do."""
    return any(member.idle for member in self._members[place])

  def ask(self, place: int, question: Any, *arguments: Any) -> None:
    """Has an idle actor of a place call its function; `question` comes back with the answer."""
    member = next(member for member in self._members[place] if member.idle)
    member.idle = False
    self._asked[member.actor.make.remote(*arguments)] = member, question

  def gone(self, place: int) -> float:
    """Returns for how many seconds a place has had no actor; infinite where none will come."""
    since = [0.0 if member.there else time.monotonic() - member.gone_since for member in self._members[place]]
    return min(since, default=float("inf"))

  def retire(self, member: Member) -> None:
    """Ends an actor for good, because its node cannot do the work."""
    self._members[member.place].remove(member)
    self._ray.kill(member.actor)

  def answers(self, timeout: float = 1.0) -> Iterator[Answer]:
    """Yields the answers that are there, and waits for the first one."""
    now = time.monotonic()
    for _, member in (due for due in self._waking if due[0] <= now):
      self._asked[member.actor.ready.remote()] = member, None
    self._waking = [due for due in self._waking if due[0] > now]
    if not self._asked:
      time.sleep(AGAIN_SECONDS)
      return
    done, _ = self._ray.wait(list(self._asked), timeout=min(timeout, AGAIN_SECONDS) if self._waking else timeout)
    for reference in done:
      member, question = self._asked.pop(reference)
      try:
        value = self._ray.get(reference)
      except self._ray.exceptions.RayTaskError as error:
        value = cause(error)
      except self._ray.exceptions.RayError as error:
        value = Lost(error)
        self._wake(member, error)
      else:
        member.losses = 0
      member.there = member.idle = not isinstance(value, Lost)
      if question is not None:
        yield Answer(question, value, member)

  def _wake(self, member: Member, error: BaseException) -> None:
    if member.there:
      member.gone_since = time.monotonic()
    if isinstance(error, self._ray.exceptions.ActorDiedError):
      member.losses += 1
      if member.losses > MOST_STARTS:
        raise ChildProcessError(f"an actor was started {MOST_STARTS} times and never answered: {first_line(error)}")
      member.actor = member.start()
    self._waking.append((time.monotonic() + AGAIN_SECONDS, member))

  def close(self) -> None:
    """Ends all actors."""
    for member in (member for members in self._members for member in members):
      self._ray.kill(member.actor)
    self._members = [[] for _ in self._members]


def make_all(
  make: Callable[[int], Any], shards: Sequence[int], address: str, slots: Sequence[Slot] | None = None
) -> Iterator[tuple[int, Any]]:
  """Yields each shard with the account that `make` returned, as soon as the shard is whole, in any order.

  Args:
    make: makes a shard whole.
    shards: the numbers of the shards.
    address: of the cluster.
    slots: where the actors are; by default one on every node, or one for every GPU.

  Raises the errors of `make` (an OSError names the node), ImportError if a node has other versions than this process,
  and ChildProcessError for a shard that ends every actor which takes it.
  """
  left, making, losses = collections.deque(shards), 0, collections.Counter[int]()
  if not left:
    return
  crew = Crew(address, [make], [(slots or all_slots(connect(address)))[: len(left)]])
  heard = time.monotonic()
  try:
    while left or making:
      while left and crew.idle(0):
        crew.ask(0, left[0], left.popleft())
        making += 1
      for answer in crew.answers():
        making -= 1
        if isinstance(answer.value, BaseException):
          raise answer.value
        if not isinstance(answer.value, Lost):
          yield answer.question, answer.value
          continue
        left.appendleft(answer.question)
        losses[answer.question] += 1
        if losses[answer.question] == MOST_LOST:
          raise ChildProcessError(
            f"shard {answer.question} ended {MOST_LOST} actors, one after the other "
            f"({first_line(answer.value.why)}); look whether the nodes have memory enough"
          )
      if crew.gone(0) and time.monotonic() - heard > QUIET_SECONDS:
        heard = time.monotonic()
        _log.warning("%d shards wait for a node of the cluster that has room for an actor", len(left))
  finally:
    crew.close()
