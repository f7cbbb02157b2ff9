import concurrent.futures
import threading

import pytest
import threadpoolctl

from qat_jax.search.cores import one_core


def threads() -> list[int]:
  return [library["num_threads"] for library in threadpoolctl.threadpool_info() if library["user_api"] == "blas"]


@pytest.mark.parametrize("first_to_leave", ["first", "second"])
def test_linear_algebra_keeps_to_one_core_and_has_its_threads_back_in_whatever_order_threads_leave(first_to_leave):
  inside, leave = threading.Event(), threading.Event()

  def other() -> None:
    with one_core():
      inside.set()
      leave.wait(10)

  at_first = threads()
  if max(at_first, default=1) == 1:
    pytest.skip("NumPy's linear algebra has one thread here")
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    with one_core():
      assert set(threads()) == {1}
      running = pool.submit(other)
      assert inside.wait(10)
      if first_to_leave == "second":
        leave.set()
        running.result()
        assert set(threads()) == {1}
    leave.set()
    running.result()
  assert threads() == at_first
