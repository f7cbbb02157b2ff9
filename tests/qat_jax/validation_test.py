import numpy as np
import pytest

import qat_jax
from qat_jax.adaptation import normalise
from qat_jax.fit.training import PLAIN
from qat_jax.metrics import average_precision
from qat_jax.types import Relevance
from qat_jax.validation import FEW, QUERY_BLOCK, Validator

QUERIES, WIDTH = QUERY_BLOCK + 3, 5  # one full block and one that is padded


@pytest.fixture
def parts():
  rng = np.random.default_rng(0)
  query_QD, gallery_ND = rng.normal(size=(QUERIES, WIDTH)), rng.normal(size=(20, WIDTH))
  positives = [rng.choice(20, 2, replace=False) for _ in range(QUERIES)]
  positives[7] = np.array([], int)
  return query_QD, gallery_ND, Relevance(positives, [np.array([], int)] * QUERIES)


def test_the_plain_form_has_the_precision_of_cosine_ranking(parts):
  query_QD, gallery_ND, relevance = parts
  unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
  ids_QN = np.argsort(-(unit(query_QD) @ unit(gallery_ND).T), axis=1)
  expected_Q = np.delete(average_precision(ids_QN, relevance), 7)  # that query has nothing relevant
  got_Q = Validator(query_QD, gallery_ND, relevance, limit=0, seed=0).precisions(PLAIN)
  np.testing.assert_allclose(got_Q, expected_Q, atol=1e-9)


def test_a_limit_draws_the_same_queries_every_time(parts):
  validators = [Validator(*parts, limit=10, seed=4) for _ in range(2)]
  assert len(validators[0].query_QD) == 10
  np.testing.assert_array_equal(validators[0].query_QD, validators[1].query_QD)


def test_a_subset_is_spread_evenly_over_the_queries(parts):
  validator = Validator(*parts, limit=0, seed=0)
  subset = validator.subset(3)
  last = len(validator.query_QD) - 1
  np.testing.assert_array_equal(subset.query_QD, validator.query_QD[[0, last // 2, last]])
  np.testing.assert_array_equal(subset.precisions(PLAIN), validator.precisions(PLAIN)[[0, last // 2, last]])
  assert len(validator.subset(1000).query_QD) == last + 1


def test_a_search_is_measured_over_the_whole_gallery(parts):
  validator = Validator(*parts, limit=0, seed=0)

  def search(query_QD, k):
    return qat_jax.rank(qat_jax.plain(query_QD), normalise(validator.gallery_ND), k)

  expected = validator(PLAIN)
  assert validator.of_search(search) == pytest.approx(expected, abs=1e-9)
  assert validator.of_search(lambda query_QD, k: search(query_QD, 1)) < expected


def test_of_several_heads_the_mildest_within_one_error_of_the_best_is_taken():
  features_QD = np.eye(4, dtype=np.float32)
  validator = Validator(
    features_QD, features_QD, Relevance([np.array([q]) for q in range(4)], [np.array([], int)] * 4), 0, 0
  )
  strong_Q, mild_Q, milder_Q = (
    np.array([0.8, 0.6, 0.4, 0.2]),
    np.array([0.2, 0.6, 0.8, 0.2]),
    np.array([0.7, 0.5, 0.3, 0.1]),
  )
  assert validator.gain(strong_Q, milder_Q) == pytest.approx((0.1, 0.0))
  gain, error = validator.gain(strong_Q, mild_Q)
  assert (gain, error) == pytest.approx((0.05, np.std([0.6, 0, -0.4, 0], ddof=1) / 2))
  assert validator.mildest_of([milder_Q, mild_Q, strong_Q]) == 1
  assert validator.mildest_of([milder_Q, strong_Q]) == 1
  assert validator.mildest_of([strong_Q, mild_Q]) == 0
  assert validator.mildest([PLAIN, PLAIN]) is PLAIN


def test_queries_of_one_instance_are_one_group():
  features_ND = np.eye(5, dtype=np.float32)
  positives, own = (
    [np.array([1, 3]), np.array([3]), np.array([4])],
    [np.array([], int), np.array([1]), np.array([], int)],
  )
  validator = Validator(features_ND[:3], features_ND, Relevance(positives, own), 0, 0)
  assert validator.group_Q.tolist() == [0, 0, 1]
  assert validator.subset(2).group_Q.tolist() == [0, 1]


def test_queries_with_the_same_list_are_one_group_though_others_share_an_item_with_them():
  features_ND, none = np.eye(4, dtype=np.float32), np.array([], int)
  lists = [np.array([0, 1]), np.array([0, 2]), np.array([0, 1]), np.array([3])]
  validator = Validator(features_ND, features_ND, Relevance(lists, [none] * 4), 0, 0)
  assert validator.group_Q.tolist() == [0, 1, 0, 2]


@pytest.mark.parametrize("seed", range(12))
def test_ranks_counted_on_the_device_give_the_precision_of_the_hosts_way(seed):
  rng = np.random.default_rng(seed)
  queries, items = int(rng.integers(1, 2 * QUERY_BLOCK)), int(rng.integers(2, 90))
  score_QN = rng.standard_normal((queries, items)).astype(np.float32)
  if seed % 2:  # equal scores, among what is right too
    score_QN = np.round(score_QN)
  if seed % 4 == 3:
    score_QN[rng.random(score_QN.shape) < 0.2] = np.nan
  some = lambda least: [rng.permutation(items)[: rng.integers(least, items + 1)] for _ in range(queries)]
  relevance = Relevance(some(1), some(0))
  validator = Validator(np.eye(queries, 3, dtype=np.float32), np.zeros((items, 3), np.float32), relevance, 0, 0)
  assert (validator.lists is None) == (max(map(len, [*relevance.positives, *relevance.ignored])) > FEW)
  own = Validator(np.eye(queries, 3, dtype=np.float32), np.zeros((items, 3), np.float32), relevance, 0, 0)
  own.lists = None
  for start in range(0, queries, QUERY_BLOCK):
    block_QN = score_QN[np.minimum(np.arange(start, start + QUERY_BLOCK), queries - 1)]
    both = [one._block_precisions(start, block_QN) for one in (validator, own)]
    np.testing.assert_allclose(*both, rtol=1e-12)
