import numpy as np
import pytest

from qat_jax import scoring
from qat_jax.types import Adaptation


def unit(rng: np.random.Generator, rows: int, width: int) -> np.ndarray:
  x = rng.standard_normal((rows, width)).astype(np.float32)
  return x / np.linalg.norm(x, axis=1, keepdims=True)


def make(form: str, queries: int = 3, width: int = 24, rank: int = 4, seed: int = 0) -> Adaptation:
  rng = np.random.default_rng(seed)
  gate = {"paper": np.zeros((queries, 1)), "gated": 1 + 0.3 * rng.standard_normal((queries, width))}
  rank = 0 if form == "gated" else rank
  factors = 0.5 * rng.standard_normal((2, queries, width, rank)) / width**0.5
  gate_QD = gate.get(form, np.ones((queries, 1)))
  return Adaptation(unit(rng, queries, width), gate_QD.astype(np.float32), *factors.astype(np.float32))


def dense_scores(adaptation: Adaptation, gallery_ND: np.ndarray) -> np.ndarray:
  """The obvious way, in float64."""
  query_QD, gate, left, right, gallery_ND = (
    np.asarray(x, np.float64)
    for x in (adaptation.query, adaptation.gate, adaptation.left, adaptation.right, gallery_ND)
  )
  width = query_QD.shape[1]
  map_QDE = np.stack([np.diag(np.broadcast_to(g, width)) for g in gate]) + left @ right.transpose(0, 2, 1)
  mapped_QND = np.einsum("QDE,NE->QND", map_QDE, gallery_ND)
  length_QN = np.linalg.norm(mapped_QND, axis=-1)
  return np.einsum("QD,QND->QN", query_QD, mapped_QND) / np.where(length_QN > 0, length_QN, 1)


FORMS = pytest.mark.parametrize("form", ["adaptive", "paper", "gated"])


@FORMS
def test_scores_are_the_cosines_of_the_dense_map(form):
  adaptation, gallery_ND = make(form), unit(np.random.default_rng(1), 50, 24)
  np.testing.assert_allclose(scoring.score(adaptation, gallery_ND), dense_scores(adaptation, gallery_ND), atol=2e-6)


@FORMS
def test_the_ranking_is_that_of_the_dense_map(form):
  adaptation, gallery_ND = make(form), unit(np.random.default_rng(1), 500, 24)
  ranking = scoring.rank(adaptation, gallery_ND, 10)
  expected_QN = dense_scores(adaptation, gallery_ND)
  np.testing.assert_array_equal(ranking.ids, np.argsort(-expected_QN, axis=1)[:, :10])
  np.testing.assert_allclose(ranking.scores, -np.sort(-expected_QN, axis=1)[:, :10], atol=2e-6)


def test_reranking_everything_is_ranking():
  adaptation, gallery_ND = make("adaptive"), unit(np.random.default_rng(1), 50, 24)
  ranking = scoring.rank(adaptation, gallery_ND, 50)
  shuffled_QS = np.stack([np.random.default_rng(i).permutation(50) for i in range(3)])
  reranked = scoring.rerank(adaptation, gallery_ND, shuffled_QS)
  np.testing.assert_array_equal(reranked.ids, ranking.ids)
  np.testing.assert_allclose(reranked.scores, ranking.scores, atol=2e-6)
