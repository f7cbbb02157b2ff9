import numpy as np
import pytest

from qat_jax.search.diversity import diverse
from qat_jax.search.rank import rank
from tests.qat_jax.search.rank_test import make
from tests.vectors import features


def slow(ids, scores, item_ND, k, diversity):
  taken = []
  for _ in range(min(k, len(ids))):
    left = [place for place in range(len(ids)) if place not in taken]
    like = lambda place: max((round(float(item_ND[ids[place]] @ item_ND[ids[t]]), 9) for t in taken), default=-1.0)
    value = [(1 - diversity) * float(scores[place]) - diversity * like(place) for place in left]
    taken.append(left[int(np.argmax(value))])
  return [int(ids[place]) for place in taken]


@pytest.mark.parametrize("diversity", [0.0, 0.3, 0.7, 1.0])
def test_the_next_item_is_the_best_by_score_less_likeness_to_those_taken(diversity):
  rng = np.random.default_rng(0)
  item_ND = features(20, 24, rng)[rng.integers(0, 20, 200)]  # copies
  exact_ND = item_ND / np.linalg.norm(item_ND.astype(np.float64), axis=1, keepdims=True)
  ranking = rank(make("plain"), item_ND, 50)
  found = diverse(ranking, item_ND, 10, diversity)
  for query in range(3):
    wanted = slow(ranking.ids[query], ranking.scores[query], exact_ND, 10, diversity)
    assert found.ids[query].tolist() == wanted
    places = [ranking.ids[query].tolist().index(i) for i in wanted]
    np.testing.assert_array_equal(found.scores[query], ranking.scores[query][places])
  if diversity == 0:
    np.testing.assert_array_equal(found.ids, ranking.ids[:, :10])


def test_a_short_ranking_is_filled_up_and_a_wrong_share_refused():
  item_ND = features(5, 24, 0)
  ranking = rank(make("plain"), item_ND, 8)
  found = diverse(ranking.replace(evidence=np.ones(ranking.ids.shape, np.float32)), item_ND, 7, 0.5)
  assert (found.ids[:, 5:] == -1).all() and (found.scores[:, 5:] == -np.inf).all()
  assert np.isnan(found.evidence[:, 5:]).all() and (found.evidence[:, :5] == 1).all()
  assert all(sorted(row[:5].tolist()) == list(range(5)) for row in found.ids)
  for wrong in ({"diversity": 1.5, "k": 3}, {"diversity": -0.1, "k": 3}, {"diversity": 0.5, "k": 0}):
    with pytest.raises(ValueError, match="give a number from 0 to 1"):
      diverse(ranking, item_ND, **wrong)
