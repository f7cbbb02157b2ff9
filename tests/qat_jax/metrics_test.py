"""Metrics against hand-worked numbers and against what the benchmarks' own programs gave (tests/data)."""

import json
from pathlib import Path

import numpy as np
import pytest

from qat_jax import metrics
from qat_jax.types import Relevance

VECTORS = Path(__file__).parents[1] / "data" / "metric_vectors"


def relevance(positives, ignored=()):
  """Returns the Relevance of one query."""
  return Relevance([np.array(positives, int)], [np.array(ignored, int)])


def test_average_precision_is_the_mean_precision_at_the_positives():
  # positives at ranks 1 and 4 of three: (1/1 + 2/4) / 3
  assert metrics.average_precision(np.array([[5, 0, 1, 6, 2]]), relevance([5, 6, 9])) == pytest.approx([0.5])


def test_ignored_items_and_missing_places_take_up_no_rank():
  # without 8 and −1 the positives stand at ranks 1 and 3: (1 + 2/3) / 2
  ids_QK = np.array([[8, 5, -1, 0, 6, -1]])
  assert metrics.average_precision(ids_QK, relevance([5, 6], [8])) == pytest.approx([(1 + 2 / 3) / 2])
  assert metrics.recall_at(ids_QK, relevance([5, 6], [8]), 1) == pytest.approx([1.0])
  assert metrics.recall_at(ids_QK, relevance([6], [8]), 2) == pytest.approx([0.0])
  assert metrics.recall_at(ids_QK, relevance([6], [8]), 3) == pytest.approx([1.0])


def test_an_item_both_positive_and_ignored_is_ignored():
  assert metrics.average_precision(np.array([[0, 1, 2]]), relevance([0, 2], [0])) == pytest.approx([(1 / 2) / 2])


def test_at_k_the_average_is_over_what_k_places_can_hold():
  ids_QK = np.array([[5, 0, 6, 7]])
  # k = 2 of three positives: (1/1) / 2; an ignored item first leaves the same two items in the first two places
  assert metrics.average_precision(ids_QK, relevance([5, 6, 7]), k=2) == pytest.approx([0.5])
  assert metrics.average_precision(np.array([[8, 5, 0, 6]]), relevance([5, 6, 7], [8]), k=2) == pytest.approx([0.5])


def test_a_query_without_positives_is_nan_and_left_out_of_intervals():
  both = Relevance([np.array([1]), np.array([], int)], [np.array([], int)] * 2)
  values_Q = metrics.average_precision(np.array([[1, 0], [1, 0]]), both)
  assert values_Q[0] == 1.0
  assert np.isnan(values_Q[1])
  assert metrics.bootstrap_interval(values_Q) == (1.0, 1.0)


def test_each_query_meets_its_own_positives():
  both = Relevance([np.array([3]), np.array([0, 1])], [np.array([0]), np.array([], int)])
  ids_QK = np.array([[0, 1, 3], [0, 1, 3]])
  assert metrics.average_precision(ids_QK, both) == pytest.approx([1 / 2, 1.0])


def test_vectorised_average_precision_equals_the_plain_loop():
  rng = np.random.default_rng(0)
  ids_QK = np.stack([rng.permutation(60) for _ in range(20)])[:, :50]
  ids_QK[:, 45:] = -1
  positives = [rng.choice(60, rng.integers(1, 9), replace=False) for _ in range(20)]
  ignored = [np.setdiff1d(rng.choice(60, 5), p) for p in positives]
  expected = []
  for ids_K, good, junk in zip(ids_QK, positives, ignored, strict=True):
    found, total = 0, 0.0
    for rank, item in enumerate([i for i in ids_K if i >= 0 and i not in junk], start=1):
      if item in good:
        found += 1
        total += found / rank
    expected.append(total / len(good))
  np.testing.assert_allclose(metrics.average_precision(ids_QK, Relevance(positives, ignored)), expected, rtol=1e-12)


@pytest.mark.parametrize("seed", range(20))
def test_scores_have_the_average_precision_of_the_ranking_they_make(seed):
  rng = np.random.default_rng(seed)
  queries, items = int(rng.integers(1, 6)), int(rng.integers(1, 60))
  score_QN = rng.standard_normal((queries, items)).astype(np.float32)
  if seed % 2:  # equal scores, among positives too
    score_QN = np.round(score_QN)
  if seed % 5 == 4:
    score_QN[rng.random(score_QN.shape) < 0.2] = np.nan
  some = lambda: [rng.permutation(items)[: rng.integers(0, items + 1)] for _ in range(queries)]
  relevance = Relevance(some(), some())
  ranked = metrics.average_precision(np.argsort(-score_QN, axis=1, kind="stable"), relevance)
  np.testing.assert_allclose(metrics.average_precision_of_scores(score_QN, relevance), ranked, rtol=1e-12)


def test_a_ranking_of_another_number_of_queries_is_refused():
  with pytest.raises(ValueError, match=r"shape \(2, 3\) does not fit relevance for 1 queries"):
    metrics.average_precision(np.zeros((2, 3), int), relevance([1]))


def test_trapezoid_averages_the_precision_before_and_at_each_positive():
  # ranks 1 and 3: ((1 + 1)/2 + (1/2 + 2/3)/2) / 2
  value = metrics.trapezoid_average_precision(np.array([[5, 0, 6]]), relevance([5, 6]))
  assert value == pytest.approx([(1 + (1 / 2 + 2 / 3) / 2) / 2])


def test_mean_precision_shrinks_k_to_the_last_positive():
  # one positive at rank 2: mP@1 = 0, mP@5 = mP@2 = 1/2
  value = metrics.precision_at_shrinking(np.array([[0, 5, 1, 2, 3, 4]]), relevance([5]), (1, 5))
  assert value == pytest.approx(np.array([[0, 0.5]]))


def test_a_repeated_prediction_adds_nothing_but_takes_a_rank():
  # 5 at rank 1, again at 2 (nothing), 6 at rank 3: (1 + 2/3) / 2
  assert metrics.landmark_average_precision(np.array([[5, 5, 6]]), relevance([5, 6])) == pytest.approx(
    [(1 + 2 / 3) / 2]
  )


def test_landmark_average_precision_reads_a_hundred_predictions():
  ids_QK = np.arange(120)[None]
  assert metrics.landmark_average_precision(ids_QK, relevance([99])) == pytest.approx([1 / 100])
  assert metrics.landmark_average_precision(ids_QK, relevance([100])) == pytest.approx([0.0])


def test_tied_scores_count_as_one_step():
  # the first two tie: both have precision 1/2; then the third 2/3 → (1/2 + 2/3) / 2
  assert metrics.average_precision_at_k([1, 0, 1], [2.0, 2.0, 1.0], 2, 10) == pytest.approx((1 / 2 + 2 / 3) / 2)
  assert metrics.average_precision_at_k([0, 1, 1], [2.0, 2.0, 1.0], 2, 10) == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_tied_items_share_their_mean_gain():
  gain = 0.5 + 0.5 / np.log2(3)
  assert metrics.ndcg_at_k([0, 1], [1.0, 1.0], 1, 10) == pytest.approx(gain)
  assert metrics.ndcg_at_k([1, 0], [1.0, 1.0], 1, 10) == pytest.approx(gain)


def test_reciprocal_rank_sorts_by_score():
  assert metrics.reciprocal_rank([0, 1, 1], [0.1, 0.5, 0.9]) == 1.0
  assert metrics.reciprocal_rank([0, 1, 0], [0.9, 0.5, 0.1]) == 0.5
  assert metrics.reciprocal_rank([0, 0], [0.9, 0.5]) == 0.0


@pytest.mark.parametrize("case", json.loads((VECTORS / "inquire.json").read_text()))
def test_inquire_vectors_are_reproduced(case):
  arguments = np.array(case["relevant"]), np.array(case["score"]), case["positives_in_dataset"], case["k"]
  expected = case["expected"]
  assert metrics.average_precision_at_k(*arguments) == pytest.approx(expected["ap"], abs=1e-9)
  assert metrics.ndcg_at_k(*arguments) == pytest.approx(expected["ndcg"], abs=1e-9)
  assert metrics.reciprocal_rank(*arguments[:2]) == pytest.approx(expected["mrr"], abs=1e-9)


def test_rows_of_many_queries_equal_one_query_at_a_time():
  cases = json.loads((VECTORS / "inquire.json").read_text())
  relevant_QK, score_QK = np.array([c["relevant"] for c in cases]), np.array([c["score"] for c in cases])
  positives_Q = np.array([c["positives_in_dataset"] for c in cases])
  for metric, name in ((metrics.average_precision_at_k, "ap"), (metrics.ndcg_at_k, "ndcg")):
    values_Q = metric(relevant_QK, score_QK, positives_Q, 50)
    np.testing.assert_allclose(values_Q, [c["expected"][name] for c in cases], atol=1e-9)


def test_a_nan_score_is_refused():
  with pytest.raises(ValueError, match="NaN"):
    metrics.reciprocal_rank([1, 0], [np.nan, 1.0])


def test_the_interval_holds_the_mean_and_narrows_as_queries_grow():
  rng = np.random.default_rng(1)
  few, many = rng.random(50), rng.random(5000)
  low, high = metrics.bootstrap_interval(few)
  assert low < few.mean() < high
  # the standard error of the mean, 1.96 times to each side
  assert high - low == pytest.approx(2 * 1.96 * few.std() / np.sqrt(50), rel=0.05)
  assert np.diff(metrics.bootstrap_interval(many)) < (high - low) / 5
  assert metrics.bootstrap_interval(few) == (low, high)


def test_a_constant_gain_has_a_paired_interval_of_no_width():
  values_Q = np.random.default_rng(2).random(40)
  assert metrics.paired_interval(values_Q + 0.25, values_Q) == pytest.approx((0.25, 0.25, 0.25))


def test_paired_values_of_other_queries_are_refused():
  with pytest.raises(ValueError, match="same queries"):
    metrics.paired_interval(np.zeros(3), np.zeros(4))


def test_nothing_found_scores_zero():
  assert metrics.average_precision_at_k([], [], 3, 10) == 0.0
  assert metrics.ndcg_at_k([], [], 3, 10) == 0.0
  assert metrics.reciprocal_rank([], []) == 0.0
  assert metrics.average_precision_at_k([0, 0], [1.0, 2.0], 3, 10) == 0.0


def test_relevance_and_scores_of_different_lengths_are_refused():
  with pytest.raises(ValueError, match=r"\(2,\), score of \(3,\)"):
    metrics.average_precision_at_k([0, 1], [0.1, 0.2, 0.3], 1, 10)


def test_a_tie_that_straddles_k_shares_its_gain():
  # one hit among two tied items, one place: half a gain
  assert metrics.ndcg_at_k([1, 0], [1.0, 1.0], 1, 1) == pytest.approx(0.5)
  assert metrics.ndcg_at_k([0, 1], [1.0, 1.0], 1, 1) == pytest.approx(0.5)


def test_metrics_agree_with_scikit_learn_where_it_is_installed():
  sklearn = pytest.importorskip("sklearn.metrics")
  rng = np.random.default_rng(4)
  for _ in range(20):
    relevant_K, score_K = rng.integers(0, 2, 30), rng.integers(0, 10, 30).astype(float)
    found = int(relevant_K.sum())
    expected = sklearn.average_precision_score(relevant_K, score_K)
    assert metrics.average_precision_at_k(relevant_K, score_K, found, 30) == pytest.approx(expected, abs=1e-12)
    expected = sklearn.ndcg_score([relevant_K], [score_K], k=12)
    assert metrics.ndcg_at_k(relevant_K, score_K, found, 12) == pytest.approx(expected, abs=1e-12)
