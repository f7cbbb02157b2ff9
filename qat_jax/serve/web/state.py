"""What a running server holds, and the one way to its jitted calls."""

import asyncio
import logging
import threading
from collections.abc import Callable
from typing import Any

from qat_jax.serve import encoding
from qat_jax.serve.limits import Limits, Refused
from qat_jax.serve.queue import Queue
from qat_jax.serve.searches import Search
from qat_jax.serve.service import Service
from qat_jax.serve.starting import Running
from qat_jax.serve.web.metrics import Metrics

_log = logging.getLogger("qat_jax.serve")


class State:
  """What a running server holds: the service, which a reload replaces whole, and the queue in front of it."""

  def __init__(self, limits: Limits, reopen: Callable[[], Service] | None = None) -> None:
    """`reopen` reads gallery and adapter anew; None where that cannot be asked for."""
    self.limits, self.reopen = limits, reopen
    self.service: Service | None = None
    self.running: Running | None = None  # where a collection is served that changes
    self.reloading = asyncio.Lock()
    self.queue = Queue(self._work, encoding.SIZES[-1], limits.waiting, limits.seconds)
    self.metrics = Metrics(lambda: len(self.queue), lambda: self.service.items.count if self.service else 0)
    self.queue.observe = self.metrics.batch

  def ready(self) -> Service:
    """Returns the service; raises Refused (503) while there is none."""
    if self.service is None:
      raise Refused(503, "starting", "the server is loading the gallery and compiling; ask again soon", 2)
    return self.service

  def show(self, service: Service) -> None:
    """Takes the place of the service before."""
    self.service = service

  def allow(self, queries: int) -> None:
    """Lets so many queries be searched at once."""
    self.queue.most = queries

  def _work(self, jobs: Any) -> list[Any]:
    """Answers a batch: searches of one service together, anything else one by one."""
    results: list[Any] = [None] * len(jobs)
    groups: dict[Service, list[int]] = {}
    for i, (service, job) in enumerate(jobs):
      if isinstance(job, Search):
        groups.setdefault(service, []).append(i)
        continue
      try:
        results[i] = job()
      except Exception as error:
        results[i] = _lost(error) if isinstance(error, OSError) else error
    for service, members in groups.items():
      try:
        found = service.search([jobs[i][1] for i in members])
      except OSError as error:  # of a disk, or of a cluster one of whose shards is gone
        found = [_lost(error)] * len(members)
      for i, result in zip(members, found, strict=True):
        results[i] = result
      spent: dict[str, float] = next((one.seconds for one in found if not isinstance(one, Exception)), {})
      self.metrics.spent(spent)
    return results

  def replace(self, service: Service) -> None:
    """Takes the place of the service before, which is closed when the last search that was accepted must be over."""
    before, self.service = self.service, service
    if before is not None and before is not service:
      closing = threading.Timer(2 * self.limits.seconds, before.close)
      closing.daemon = True
      closing.start()

  def close(self, seconds: float) -> bool:
    """Answers what was accepted, for so many seconds at most, and ends all; says whether all threads have ended."""
    self.queue.close(seconds)
    if self.service is not None:
      self.service.close()
    return self.running is None or self.running.stop()

  async def do(self, service: Service, job: Any) -> Any:
    """Returns what the queue's thread makes of a search, or of a function."""
    return await asyncio.wrap_future(self.queue.put((service, job)))


def _lost(error: OSError) -> Refused:
  """Returns what a client is told of a gallery that cannot be read; what it was goes to the log."""
  _log.error("the gallery cannot be searched: %s", " ".join(str(error).split()))
  return Refused(503, "unreachable", "a part of the gallery cannot be reached just now; ask again soon", 10)
