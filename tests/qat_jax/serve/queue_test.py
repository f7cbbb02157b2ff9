import threading

import pytest

from qat_jax.serve import queue as module
from qat_jax.serve.limits import Limits, Rates, Refused, check_host, check_key, host_of, is_loopback
from qat_jax.serve.queue import Queue


class Gate:
  """Work that waits to be let go on, and notes its batches."""

  def __init__(self):
    self.open, self.begun, self.batches = threading.Event(), threading.Event(), []

  def __call__(self, jobs):
    self.begun.set()
    self.open.wait(10)
    self.batches.append(list(jobs))
    if any(job == "bad" for job in jobs):
      raise ValueError("bad")
    return [job * 2 for job in jobs]


@pytest.fixture
def gate():
  gate = Gate()
  yield gate
  gate.open.set()


def blocked(gate, **settings):
  """Returns a queue whose thread is at work on a first job, and that job's future."""
  queue = Queue(gate, **{"most": 4, "waiting": 8, "seconds": 30, **settings})
  future = queue.put(0)
  assert gate.begun.wait(10)
  return queue, future


def test_what_arrives_while_a_batch_is_computed_is_the_next_one(gate):
  queue, first = blocked(gate)
  sizes = []
  queue.observe = lambda size, waited: sizes.append(size)
  futures = [queue.put(i) for i in range(1, 7)]
  gate.open.set()
  assert [future.result(10) for future in (first, *futures)] == [2 * i for i in range(7)]
  assert gate.batches == [[0], [1, 2, 3, 4], [5, 6]] and sizes == [4, 2]


def test_after_a_batch_of_several_the_clients_that_were_answered_are_waited_for(gate, monkeypatch):
  monkeypatch.setattr(module, "GATHER", 1e6)  # an answer within ten seconds comes of what is waited for
  queue, first = blocked(gate)
  futures = [queue.put(job) for job in (1, 2)]
  gate.open.set()
  assert [future.result(10) for future in (first, *futures)] == [0, 2, 4]
  gate.begun.clear()
  future = queue.put(3)
  assert not gate.begun.wait(0.1)
  assert queue.put(4).result(10) == 8 and future.result(10) == 6 and gate.batches[-1] == [3, 4]


def test_a_client_that_is_alone_waits_for_nobody(gate, monkeypatch):
  monkeypatch.setattr(module, "GATHER", 1e6)
  queue, first = blocked(gate)
  gate.open.set()
  assert [first.result(10), queue.put(1).result(10), queue.put(2).result(10)] == [0, 2, 4]


def test_one_job_that_fails_does_not_fail_the_others(gate):
  queue, _first = blocked(gate)
  futures = [queue.put(job) for job in (1, "bad", 3)]
  gate.open.set()
  assert futures[0].result(10) == 2 and futures[2].result(10) == 6
  with pytest.raises(ValueError, match="bad"):
    futures[1].result(10)


def test_a_full_queue_refuses_and_a_late_job_is_told(gate):
  queue, _first = blocked(gate, waiting=2)
  queue.seconds = -1
  futures = [queue.put(1), queue.put(2)]
  with pytest.raises(Refused, match="2 requests are waiting") as error:
    queue.put(3)
  assert error.value.status == 503 and error.value.headers()["Retry-After"] == "1"
  gate.open.set()
  for future in futures:
    with pytest.raises(Refused, match="waited"):
      future.result(10)


def test_closing_answers_what_was_accepted_and_takes_no_more(gate):
  queue, _first = blocked(gate)
  waiting, given_up = queue.put(1), queue.put(5)
  assert given_up.cancel()
  assert not queue.close(0.01)  # still at work
  with pytest.raises(Refused, match="stopping"):
    queue.put(2)
  gate.open.set()
  assert queue.close(10) and waiting.result(0) == 2
  assert gate.batches == [[0], [1]]


def test_a_client_has_its_rate_and_its_burst():
  rates = Rates(rate=2, burst=3)
  for _ in range(3):
    rates.take("a", now=0.0)
  with pytest.raises(Refused) as error:
    rates.take("a", now=0.1)
  assert error.value.status == 429 and error.value.headers() == {"Retry-After": "1"}
  rates.take("b", now=0.1)
  rates.take("a", now=0.6)
  with pytest.raises(Refused):
    rates.take("a", now=0.6)
  Rates(0, 1).take("anybody")


def test_keys_hosts_and_addresses():
  check_key((), None, None)
  check_key(("other", "secret"), "Bearer secret", None)
  check_key(("secret",), None, "secret")
  for given in ((None, None), ("Bearer other", None), ("secret", None), (None, ""), ("Basic secret", None)):
    with pytest.raises(Refused) as error:
      check_key(("secret",), *given)
    assert error.value.status == 401
  assert [host_of(name) for name in ("LocalHost:80", "[::1]:8000", "::1", "a.b")] == ["localhost", "::1", "::1", "a.b"]
  check_host("localhost:8000", frozenset({"localhost"}))
  with pytest.raises(Refused, match=r"evil\.example"):
    check_host("evil.example", frozenset({"localhost"}))
  assert [is_loopback(name) for name in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "::", "example.org")] == [
    True
  ] * 3 + [False] * 3
  with pytest.raises(ValueError, match="the limit k is 0"):
    Limits(k=0)
