import jax.numpy as jnp
import numpy as np
import pytest

from eval.baselines import graph
from qat_jax.adaptation import unit
from qat_jax.types import Ranking


@pytest.fixture
def gallery_ND():
  return jnp.asarray(unit(np.random.default_rng(0).normal(size=(30, 4))), jnp.float32)


def test_neighbours_are_the_nearest_others_in_any_blocks(gallery_ND, monkeypatch):
  monkeypatch.setattr(graph, "BLOCK_ROWS", 7)
  cosine_NN = np.array(gallery_ND @ gallery_ND.T)
  np.fill_diagonal(cosine_NN, -np.inf)
  np.testing.assert_array_equal(graph.neighbours_of(gallery_ND, 5).ids, np.argsort(-cosine_NN, axis=1)[:, :5])


def test_a_small_gallery_has_as_many_neighbours_as_others(gallery_ND):
  assert graph.neighbours_of(gallery_ND[:3], 5).ids.shape == (3, 2)
  with pytest.raises(ValueError, match="two items or more"):
    graph.neighbours_of(gallery_ND[:1], 5)


def test_the_graph_by_hand():
  found = Ranking(
    np.array([[1, 2], [0, 2], [1, 3], [2, 1]]), np.array([[0.5, 0.4], [0.5, 0.2], [0.2, 0.1], [0.1, 0.1]])
  )
  matrix_NN = graph.mutual_graph(found, 2, gamma=2.0).toarray()
  a, b, c = 0.25, 0.04, 0.01  # mutual: 0–1, 1–2, 2–3; 0 → 2 and 3 → 1 are not answered
  degree_N = [a, a + b, b + c, c]
  expected_NN = np.zeros((4, 4))
  for i, j, weight in ((0, 1, a), (1, 2, b), (2, 3, c)):
    expected_NN[i, j] = expected_NN[j, i] = weight / np.sqrt(degree_N[i] * degree_N[j])
  np.testing.assert_allclose(matrix_NN, expected_NN, rtol=1e-6)


def test_the_graph_is_symmetric_and_lone_items_have_no_edges(gallery_ND):
  matrix_NN = graph.mutual_graph(graph.neighbours_of(gallery_ND, 5), 1, gamma=3.0).toarray()
  np.testing.assert_array_equal(matrix_NN, matrix_NN.T)
  assert (matrix_NN.sum(axis=1) == 0).any() and (matrix_NN > 0).any() and np.isfinite(matrix_NN).all()


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.99])
def test_conjugate_gradients_equal_the_dense_solution(gallery_ND, alpha):
  matrix = graph.mutual_graph(graph.neighbours_of(gallery_ND, 6), 6, gamma=3.0)
  right_NQ = np.random.default_rng(1).uniform(size=(30, 4)) * [1, 100, 0, 1e-3]  # scales differ, one column is zero
  expected_NQ = np.linalg.solve(np.eye(30) - alpha * matrix.toarray(), right_NQ)
  got_NQ = graph.diffuse(matrix, right_NQ, alpha, tolerance=1e-9, steps=100)
  np.testing.assert_allclose(got_NQ, expected_NQ, rtol=1e-5, atol=1e-9)


def test_few_steps_stop_early(gallery_ND):
  matrix = graph.mutual_graph(graph.neighbours_of(gallery_ND, 6), 6, gamma=3.0)
  right_N1 = np.eye(30)[:, :1]
  left = lambda steps: np.linalg.norm(
    graph.diffuse(matrix, right_N1, 0.9, 1e-9, steps) - graph.diffuse(matrix, right_N1, 0.9, 1e-9, 99)
  )
  assert left(1) > left(5) > left(99) == 0
