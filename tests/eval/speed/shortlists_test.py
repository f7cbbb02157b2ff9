import numpy as np
import pytest

import qat_jax
from eval.speed import shortlists
from eval.speed.tools import make_adaptation


def test_an_exact_shortlist_of_everything_holds_the_exact_ranking_and_a_short_one_less(tmp_path):
  gallery_ND, query_QD = shortlists.clusters(300, 16, 4)
  adaptation = make_adaptation(4, 16, 4, np.full(4, 0.9)).replace(query=query_QD)
  index = shortlists.built("exact", gallery_ND, tmp_path, None)
  rows = shortlists.recalls(adaptation, query_QD, gallery_ND, index, 20, [20, 300])
  recall = {(row["query"], row["length"]): row["recall"] for row in rows}
  assert recall["raw", 300] == recall["folded", 300] == 1
  assert recall["raw", 20] < recall["folded", 20] <= 1
  assert all(row["ms"] > 0 for row in rows)
  lines = shortlists.recall_table([{"index": "exact"} | row for row in rows]).splitlines()
  assert len(lines) == 4 and lines[3].startswith("| 300 | exact | folded | 0.")


def test_a_raw_query_of_a_wider_gallery_says_nothing_about_what_was_added(tmp_path):
  gallery_ND, query_QD = shortlists.clusters(50, 16, 2)
  wider_ND = np.pad(gallery_ND, ((0, 0), (0, 1)))
  adaptation = qat_jax.plain(np.pad(query_QD, ((0, 0), (0, 1))))
  index = shortlists.built("exact", wider_ND, tmp_path, None)
  assert all(row["recall"] == 1 for row in shortlists.recalls(adaptation, query_QD, wider_ND, index, 5, [5]))


def test_an_index_that_nobody_knows_is_named(tmp_path):
  with pytest.raises(ValueError, match="'milvus'; wanted one of exact, scann"):
    shortlists.built("milvus", np.eye(3, dtype=np.float32), tmp_path, None)
