import sys

import numpy as np

from eval.speed import ways
from eval.speed.latency import table


def test_the_ways_that_eval_latency_compares_find_the_same():
  adaptation = ways.make_adaptation(4, 32, 3, 0.5 * 0.7 ** np.arange(3))
  gallery_ND = ways.make_gallery(1200, 32, "float32")
  named = ways.ways(adaptation, gallery_ND, 20)
  expected_QK = named["rank"].run().ids
  np.testing.assert_array_equal(named["dense"].run(), expected_QK)
  np.testing.assert_array_equal(named["dense_blocks"].run(), expected_QK)
  np.testing.assert_array_equal(named["factored"].run(), expected_QK)
  assert not np.array_equal(named["plain_rank"].run().ids, expected_QK)


def test_a_dense_form_that_the_memory_cannot_hold_is_not_run(monkeypatch):
  monkeypatch.setattr(ways, "free_bytes", lambda: 2 * 4 * 100 * 32 * 4)
  gallery_ND = ways.make_gallery(101, 32, "float32")
  named = ways.ways(ways.make_adaptation(4, 32, 3, np.ones(3)), gallery_ND, 20)
  assert named["dense"] == "not run: its mapped items take 0.0 GB"


def test_the_table_prints_where_faiss_is_missing(monkeypatch):
  monkeypatch.setitem(sys.modules, "faiss", None)
  adaptation = ways.make_adaptation(2, 16, 2, np.ones(2))
  found = ways.library_ways(adaptation, ways.make_gallery(100, 16, "float32"), 5)
  assert "not installed" in table([], {"faiss_flat": found["faiss_flat"]})
