"""One queue in front of the jitted calls: a thread takes all that has arrived, up to `most`, as one batch.

While a batch is computed the next one gathers, so under load batches grow by themselves. Clients that wait for their
answers ask again at once. So after a batch of several the queue waits a little for them, or they would come by halves,
one half always waiting for the other. A client that is alone never waits.
"""

import collections
import concurrent.futures
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from qat_jax.serve.limits import Refused

GATHER = 0.2  # of the time that a batch takes, lately: how long the next one may wait for clients that were answered

Work = Callable[[Sequence[Any]], Sequence[Any]]


class Queue:
  """Jobs in, futures out; `work` gets batches, and returns a result or an exception for each job."""

  def __init__(self, work: Work, most: int, waiting: int, seconds: float) -> None:
    self.work, self.most, self.waiting, self.seconds = work, most, waiting, seconds
    self.observe: Callable[[int, float], None] = lambda size, waited: None  # of each batch; the longest wait
    self._jobs: collections.deque[tuple[Any, concurrent.futures.Future, float]] = collections.deque()
    self._changed = threading.Condition()
    self._closed = False
    self._pace = 0.05  # seconds a batch, lately
    self._expected, self._until = 0, 0.0  # jobs, if all clients of the last batch ask again; when to go on without
    self._thread = threading.Thread(target=self._run, name="search", daemon=True)
    self._thread.start()

  def __len__(self) -> int:
    return len(self._jobs)

  def put(self, job: Any) -> concurrent.futures.Future:
    """Returns the future of a job's result; raises Refused (503) where the queue is full or closed."""
    future: concurrent.futures.Future = concurrent.futures.Future()
    with self._changed:
      if self._closed:
        raise Refused(503, "stopping", "the server is stopping; ask again when it is back", 5)
      if len(self._jobs) >= self.waiting:
        seconds = self._pace * self.waiting / self.most
        raise Refused(503, "busy", f"{self.waiting} requests are waiting already; try again later", seconds)
      self._jobs.append((job, future, time.monotonic()))
      self._changed.notify()
    return future

  def close(self, seconds: float) -> bool:
    """Takes no more jobs, does what is waiting, and says whether that was done within some seconds."""
    with self._changed:
      self._closed = True
      self._changed.notify()
    self._thread.join(seconds)
    return not self._thread.is_alive()

  def _run(self) -> None:
    while True:
      with self._changed:
        while not self._jobs and not self._closed:
          self._changed.wait()
        if not self._jobs:
          return
        come = lambda: self._closed or len(self._jobs) >= min(self._expected, self.most)
        self._changed.wait_for(come, max(0.0, self._until - time.monotonic()))
        batch = [self._jobs.popleft() for _ in range(min(self.most, len(self._jobs)))]
      self._answer(batch)

  def _answer(self, batch: list[tuple[Any, concurrent.futures.Future, float]]) -> None:
    """Works on a batch; sets the result or the exception of each future whose client still waits."""
    now = time.monotonic()
    alive = []
    for job, future, since in batch:
      if not future.set_running_or_notify_cancel():
        continue
      if now - since > self.seconds:
        future.set_exception(Refused(503, "busy", f"waited {self.seconds:g} s for its turn; try again later", 1))
      else:
        alive.append((job, future))
    if not alive:
      return
    self.observe(len(alive), now - batch[0][2])
    results = self._results([job for job, _ in alive])
    self._pace += 0.2 * (time.monotonic() - now - self._pace)
    if len(alive) > 1:
      self._expected, self._until = len(self._jobs) + len(alive), time.monotonic() + GATHER * self._pace
    else:
      self._expected = 0
    for (_, future), result in zip(alive, results, strict=True):
      if isinstance(result, Exception):
        future.set_exception(result)
      else:
        future.set_result(result)

  def _results(self, jobs: list[Any]) -> Sequence[Any]:
    """Returns a result or an exception for each job; where a batch fails, each job alone: one's fault is not all's."""
    try:
      return self.work(jobs)
    except Exception as error:
      if len(jobs) == 1:
        return [error]
    return [self._results([job])[0] for job in jobs]
