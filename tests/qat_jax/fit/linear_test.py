import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qat_jax.fit import linear
from qat_jax.fit.training import Training
from qat_jax.types import Relevance
from qat_jax.validation import Validator


@pytest.fixture
def train():
  rng = np.random.default_rng(0)
  class_ID = rng.normal(size=(6, 4))
  image_ND = np.repeat(class_ID, 5, axis=0) + 0.3 * rng.normal(size=(30, 4))
  image_ND = image_ND.astype(np.float32)
  return Training("image", image_ND, image_ND, np.repeat([f"i{i}" for i in range(6)], 5))


def test_the_loss_by_hand():
  params = {
    "kernel": jnp.array([[2.0, 0.0], [0.0, 1.0]]),
    "bias": jnp.array([1.0, 0.0]),
    "classes": jnp.array([[5.0, 0.0], [0.0, 0.1]]),
  }
  got = linear.loss(params, jnp.array([[1.0, 4.0]]), jnp.array([1]))  # layer: (3, 4) → (0.6, 0.8); logits 9.6, 12.8
  assert got == pytest.approx(np.log(1 + np.exp(-3.2)), rel=1e-5)


def test_a_first_step_of_adam_moves_everything_by_the_learning_rate(train):
  params = linear.first_parameters(jax.random.key(0), 4, 6)
  before = jax.tree.map(np.asarray, params)
  image_ND, label_N = jnp.asarray(train.images), jnp.repeat(jnp.arange(6), 5)
  gradient = jax.grad(linear.loss)(params, image_ND, label_N)
  after, _, _ = linear.train_epoch(params, linear.OPTIMISER.init(params), image_ND, label_N, jnp.arange(30)[None])
  for name in before:
    decayed = np.asarray(gradient[name]) + linear.WEIGHT_DECAY * before[name]
    clear = np.abs(decayed) > 1e-5
    np.testing.assert_allclose((after[name] - before[name])[clear], -1e-3 * np.sign(decayed)[clear], rtol=2e-2)


def test_training_lowers_the_loss(train):
  params = linear.first_parameters(jax.random.key(0), 4, 6)
  state, losses = linear.OPTIMISER.init(params), []
  for _ in range(20):
    params, state, loss_S = linear.train_epoch(
      params, state, jnp.asarray(train.images), jnp.repeat(jnp.arange(6), 5), jnp.arange(30)[None]
    )
    losses.append(float(loss_S[0]))
  assert losses[-1] < 0.5 * losses[0]


def test_batches_hold_no_row_twice_and_differ_by_epoch():
  rows_SB = linear.batches(jax.random.key(0), 300)
  assert rows_SB.shape == (2, 128) and len(np.unique(rows_SB)) == 256
  assert (rows_SB != linear.batches(jax.random.key(1), 300)).any()
  assert linear.batches(jax.random.key(0), 30).shape == (1, 30)


def test_the_fit_has_the_layer_only_and_is_the_same_every_time(train):
  relevance = Relevance([np.arange(5 * i, 5 * i + 5) for i in range(6)], [np.array([], int)] * 6)
  validator = Validator(train.images[::5], train.images, relevance, limit=0, seed=0)
  fits = [linear.fit_linear(train, validator) for _ in range(2)]
  sizes = {name: x.size for name, x in fits[0].variables["params"]["gallery_map"].items()}
  assert sizes == {"mean": 4, "map": 4 * 512, "bias": 512}
  jax.tree.map(np.testing.assert_array_equal, fits[0].variables, fits[1].variables)


def test_text_queries_enter_at_the_mean_of_the_images():
  layer = {"kernel": np.eye(2, 512, dtype=np.float32), "bias": np.zeros(512, np.float32)}
  head = linear.layer_head(layer, np.array([0.5, 0.0]))
  query_QD = head.module(2).apply(head.variables, np.array([[0.8, 0.6]])).query  # enters at (0.3, 0.6)
  np.testing.assert_allclose(query_QD[0, :2], np.array([0.3, 0.6]) / 0.45**0.5, rtol=1e-4)
  items = head.module(2).apply(head.variables, np.array([[3.0, 4.0]]), method="prepare")
  np.testing.assert_allclose(items[0, :2], [0.6, 0.8], rtol=1e-4)


def test_one_instance_cannot_train_a_classifier(train):
  validator = Validator(train.images, train.images, Relevance([np.arange(3)] * 30, [np.array([], int)] * 30), 0, 0)
  assert linear.fit_linear(train._replace(instance=np.zeros(30)), validator) is None


def test_aspects_are_left_out_of_queries_and_items_by_hand():
  rows_WD = np.array([[0.8, 0.6, 0.0, 0.0], [0.8, -0.6, 0.0, 0.0], [0.8, 0.6, 0.0, 0.0], [0.8, -0.6, 0.0, 0.0]])
  other_WD = np.array([[0.0, 0.6, 0.0, 0.8], [0.0, 0.6, 0.0, -0.8]])
  x_ND = np.array([[2.0, 4.0, 1.0, 2.0], [0.0, 0.0, 3.0, 4.0]], np.float32)
  for aspects, left in (
    ({"scene": rows_WD}, [[2 / 3, 0, 1 / 3, 2 / 3], [0, 0, 0.6, 0.8]]),  # the second direction is out
    ({"scene": rows_WD, "light": other_WD}, [[2 / 5**0.5, 0, 1 / 5**0.5, 0], [0, 0, 1, 0]]),  # and the fourth
  ):
    head = linear.without(aspects)
    assert head.note == f"off {', '.join(aspects)}" and head.items_wide(4) == 4 and head.space != "frozen"
    module = head.module(4)
    items_NE = module.apply(head.variables, x_ND, method="prepare")
    np.testing.assert_allclose(items_NE, left, atol=1e-6)
    adaptation = module.apply(head.variables, x_ND)
    np.testing.assert_allclose(adaptation.query, left, atol=1e-6)
    assert adaptation.left.shape[2] == 0 and (adaptation.gate == 1).all()
