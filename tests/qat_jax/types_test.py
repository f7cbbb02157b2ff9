import numpy as np
import pytest

from qat_jax.types import Relevance


def test_taking_some_queries_keeps_each_with_its_own_lists():
  relevance = Relevance([np.array([1, 2]), np.array([3]), np.array([])], [np.array([]), np.array([4]), np.array([5])])
  taken = relevance.take([2, 1])
  assert len(taken) == 2
  assert [x.tolist() for x in taken.positives] == [[], [3]]
  assert [x.tolist() for x in taken.ignored] == [[5], [4]]


def test_lists_for_different_numbers_of_queries_are_refused():
  with pytest.raises(ValueError, match=r"positives for 1 queries, ignored for 2"):
    Relevance([np.array([1])], [np.array([]), np.array([])])
