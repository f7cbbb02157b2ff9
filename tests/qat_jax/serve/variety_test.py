"""Near-duplicates are one result and the others differ, by the service as by the slow way."""

import numpy as np
import pytest

from qat_jax.search.diversity import diverse
from qat_jax.serve.searches import Part, Search
from qat_jax.serve.variety import LOOKED, Variety
from qat_jax.types import ArrayGallery, Ranking

THRESHOLD = 0.95


@pytest.fixture(scope="module")
def copies():
  """A gallery of 60 things, about five slightly changed copies of each, and a ranking of most of it for two queries."""
  rng = np.random.default_rng(0)
  thing_ND = rng.standard_normal((60, 16))[rng.integers(0, 60, 300)] + 0.05 * rng.standard_normal((300, 16))
  ids_QS = np.stack([rng.permutation(300)[:250] for _ in range(2)]).astype(np.int32)
  scores_QS = -np.sort(-rng.random((2, 250)).astype(np.float32), axis=1)
  return thing_ND.astype(np.float32), Ranking(ids_QS, scores_QS, scores_QS / 2)


def stood_for(ids, item_ND):
  """Returns the items that no item before them is nearly the same as, and how many each stands for."""
  row = item_ND.astype(np.float64) / np.linalg.norm(item_ND.astype(np.float64), axis=1, keepdims=True)
  kept = {}
  for i in ids.tolist():
    like = next((j for j in kept if row[i] @ row[j] >= THRESHOLD), i)
    kept[like] = kept.get(like, 0) + 1
  return kept


def test_near_duplicates_are_one_result_the_best_of_them(copies):
  item_ND, ranking = copies
  found, count_QK = Variety(duplicates=True).of(ranking, ArrayGallery(item_ND), 20)
  for query in range(2):
    kept = stood_for(ranking.ids[query], item_ND)
    assert 20 < len(kept) < 250  # some are copies, some are not
    assert found.ids[query].tolist() == list(kept)[:20] and count_QK[query].tolist() == list(kept.values())[:20]
    place = [ranking.ids[query].tolist().index(i) for i in found.ids[query]]
    np.testing.assert_array_equal(found.scores[query], ranking.scores[query][place])
    np.testing.assert_array_equal(found.evidence[query], ranking.evidence[query][place])


def test_diversity_goes_on_top_of_what_is_left(copies):
  item_ND, ranking = copies
  kept = list(stood_for(ranking.ids[0], item_ND))
  score = dict(zip(ranking.ids[0].tolist(), ranking.scores[0].tolist(), strict=True))
  left = Ranking(np.array([kept], np.int32), np.array([[score[i] for i in kept]], np.float32))
  wanted = diverse(left, item_ND, 20, 0.6)
  found, count_QK = Variety(True, 0.6).of(ranking, ArrayGallery(item_ND), 20)
  np.testing.assert_array_equal(found.ids[0], wanted.ids[0])
  counts = stood_for(ranking.ids[0], item_ND)
  assert count_QK[0].tolist() == [counts[i] for i in found.ids[0].tolist()]
  assert found.ids[0].tolist() != kept[:20]


def test_nothing_asked_changes_nothing_and_nothing_found_is_no_result(copies):
  item_ND, ranking = copies
  assert Variety().of(ranking, ArrayGallery(item_ND), 20) == (ranking, None)
  assert Variety().depth(7) == 7 and Variety(True).depth(7) == LOOKED
  empty = Ranking(np.full((1, 5), -1, np.int32), np.full((1, 5), -np.inf, np.float32))
  assert (Variety(True, 0.5).of(empty, ArrayGallery(item_ND), 3)[0].ids == -1).all()
  with pytest.raises(ValueError, match="diversity is 1.5; give a number from 0 to 1"):
    Variety(diversity=1.5)


@pytest.mark.parametrize("mode", ["plain", "both"])
def test_a_service_groups_what_is_nearly_the_same(served, mode):
  search = lambda **more: served.search([Search((Part(position=0),), 36, mode, **more)])[0]
  plain, once = search(), search(variety=Variety(duplicates=True))
  kept = stood_for(plain.plain.ids, np.asarray(served.frozen[:]))
  assert once.plain.ids.tolist() == list(kept) and once.alike["plain"].tolist() == list(kept.values())
  assert len(kept) < len(plain.plain.ids) == once.alike["plain"].sum()
  few = served.search([Search((Part(position=0),), 2, "plain", variety=Variety(True, 0.9))])[0]
  wanted = diverse(Ranking(once.plain.ids[None], once.plain.scores[None]), np.asarray(served.frozen[:]), 2, 0.9)
  assert few.plain.ids.tolist() == wanted.ids[0].tolist()
