import jax.numpy as jnp
import numpy as np

from eval.baselines import neighbours
from eval.baselines.types import Train
from qat_jax.fit.closed_form import unit
from qat_jax.types import Relevance
from qat_jax.validation import Validator


def test_the_residual_by_hand():
  bank = neighbours.Bank(jnp.eye(2), jnp.array([[0.0, 1.0], [1.0, 0.0]]))
  moved_QD = neighbours.neighbour_residual(bank, np.array([[1.0, 0.0]]), temperature=0.5, scale=1.0)
  a = np.exp(2) / (np.exp(2) + 1)  # the weight of the first pair
  np.testing.assert_allclose(moved_QD[0], np.array([2 - 2 * a, 2 * a - 1]) / np.hypot(2 - 2 * a, 2 * a - 1), rtol=1e-5)


def test_an_image_stands_beside_the_mean_of_its_instances_others():
  image_ND = np.array([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0], [1.0, 0, 0]])
  bank = neighbours.image_bank(image_ND, np.array(["a", "a", "a", "b"]))
  np.testing.assert_allclose(bank.query_MD, np.eye(3))
  np.testing.assert_allclose(bank.image_MD, [[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])


def test_what_cannot_be_fitted_is_none():
  image_ND = np.eye(3)
  validator = Validator(image_ND, image_ND, Relevance([np.array([0])] * 3, [np.array([], int)] * 3), 0, 0)
  assert neighbours.fit(Train("image", None, image_ND, np.arange(3)), validator) is None
  assert neighbours.fit(Train("text", None, image_ND, np.zeros(3)), validator) is None


def test_a_constant_gap_between_text_and_image_is_closed():
  rng = np.random.default_rng(0)
  text_ND = unit(rng.normal(size=(60, 5))).astype(np.float32)
  image_ND = text_ND[:, [1, 2, 3, 4, 0]]  # images lie elsewhere
  relevance = Relevance([np.array([i]) for i in range(60)], [np.array([], int)] * 60)
  validator = Validator(text_ND, image_ND, relevance, limit=0, seed=0)
  fitted = neighbours.fit(Train("text", text_ND, image_ND, np.arange(60)), validator)
  assert validator.of_search(fitted.index(image_ND)) > 0.9
