import jax.numpy as jnp
import numpy as np
import pytest

from eval.baselines import diffusion
from eval.baselines.diffusion import Choice, GraphedItems
from eval.baselines.graph import mutual_graph, neighbours_of
from qat_jax.adaptation import unit
from qat_jax.types import Relevance
from qat_jax.validation import Validator

CHOICE = Choice(neighbours=4, gamma=3.0, alpha=0.9, entries=2, weight=0.5)


@pytest.fixture
def items():
  gallery_ND = jnp.asarray(unit(np.random.default_rng(0).normal(size=(40, 4))), jnp.float32)
  return GraphedItems(gallery_ND, mutual_graph(neighbours_of(gallery_ND, 4), 4, 3.0))


@pytest.fixture
def query_QD():
  return np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32)


def dense(items, query_QD):
  cosine_QN = unit(query_QD) @ np.asarray(items.gallery_ND).T
  right_QN = np.zeros_like(cosine_QN)
  for right_N, cosine_N in zip(right_QN, cosine_QN, strict=True):
    near = np.argsort(-cosine_N)[: CHOICE.entries]
    right_N[near] = cosine_N[near] ** CHOICE.gamma
  f_QN = np.linalg.solve(np.eye(40) - CHOICE.alpha * items.graph.toarray(), right_QN.T).T
  return cosine_QN + CHOICE.weight * f_QN / f_QN.max(axis=1, keepdims=True)


def test_global_diffusion_equals_the_dense_solution(items, query_QD, monkeypatch):
  monkeypatch.setattr(diffusion, "QUERY_BLOCK", 2)
  found = diffusion.search_all(items, CHOICE, query_QD, 12)
  np.testing.assert_allclose(found.scores, -np.sort(-dense(items, query_QD), axis=1)[:, :12], atol=1e-3)


def test_a_shortlist_of_everything_is_global_diffusion(items, query_QD):
  everywhere = diffusion.search_all(items, CHOICE, query_QD, 40)
  shortlist = diffusion.search_shortlist(items, CHOICE, query_QD, 40)
  np.testing.assert_allclose(shortlist.scores, everywhere.scores, atol=1e-3)


def test_behind_the_shortlist_the_plain_order_stays(items, query_QD, monkeypatch):
  monkeypatch.setattr(diffusion, "SHORTLIST", 8)
  found = diffusion.search_shortlist(items, CHOICE, query_QD, 40)
  plain_QN = np.argsort(-(unit(query_QD) @ np.asarray(items.gallery_ND).T), axis=1)
  np.testing.assert_array_equal(found.ids[:, 8:], plain_QN[:, 8:])
  np.testing.assert_array_equal(np.sort(found.ids[:, :8]), np.sort(plain_QN[:, :8]))
  assert (found.ids[:, :8] != plain_QN[:, :8]).any()
  assert (np.diff(found.scores) <= 1e-6).all()
  assert diffusion.search_shortlist(items, CHOICE, query_QD, 3).ids.shape == (5, 3)


@pytest.mark.parametrize("fit", [diffusion.fit, diffusion.fit_shortlist])
def test_diffusion_follows_a_chain_that_cosine_loses(fit):
  degree = np.concatenate([np.arange(10, 100, 10), [-25, -60, -85]])  # right: the chain; wrong: nearer, but apart
  angle = np.deg2rad(degree)
  gallery_ND = np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)
  relevance = Relevance([np.arange(9)], [np.array([], int)])
  validator = Validator(np.array([[1.0, 0.0]]), gallery_ND, relevance, limit=0, seed=0)
  fitted = fit(validator)
  assert validator.of_search(fitted.prepare(gallery_ND)) > 0.95


def test_tuning_walks_to_the_best_of_a_grid():
  aim = Choice(5, 1.0, 0.99, 20, 0.1)
  assert diffusion.best_choice(lambda choice: -sum(abs(a - b) for a, b in zip(choice, aim, strict=True))) == aim


def test_a_gallery_of_one_cannot_be_diffused():
  validator = Validator(np.eye(2)[:1], np.eye(2)[:1], Relevance([np.array([0])], [np.array([], int)]), 0, 0)
  assert diffusion.fit(validator) is None
