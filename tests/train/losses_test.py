import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train.losses import add_noise, contrastive


def test_two_pairs_give_the_loss_worked_out_by_hand():
  # rows: ln(e^2 + e^0) − 2 and ln(e^1 + e^3) − 3; columns: ln(e^2 + e^1) − 2 and ln(e^0 + e^3) − 3
  score_QN = jnp.array([[2.0, 0.0], [1.0, 3.0]])
  rows = (np.log(np.exp(2) + 1) - 2 + np.log(np.exp(1) + np.exp(3)) - 3) / 2
  columns = (np.log(np.exp(2) + np.exp(1)) - 2 + np.log(1 + np.exp(3)) - 3) / 2
  loss = contrastive(score_QN, jnp.array([0, 1]), temperature=1.0)
  assert float(loss) == pytest.approx((rows + columns) / 2, abs=1e-6)


def test_the_temperature_divides_the_scores():
  score_QN = jax.random.normal(jax.random.key(0), (4, 4))
  instance_Q = jnp.arange(4)
  chex.assert_trees_all_close(
    contrastive(score_QN, instance_Q, 0.5), contrastive(score_QN / 0.5, instance_Q, 1.0), rtol=1e-6
  )


def test_another_image_of_the_same_instance_is_no_negative():
  score_QN = jnp.array([[0.9, 0.8, 0.1], [0.7, 0.9, 0.2], [0.1, 0.2, 0.9]])
  loss = contrastive(score_QN, jnp.array([5, 5, 6]), 0.1)
  changed_QN = score_QN.at[0, 1].set(50.0).at[1, 0].set(50.0)
  assert float(loss) == float(contrastive(changed_QN, jnp.array([5, 5, 6]), 0.1))
  assert float(contrastive(changed_QN, jnp.array([5, 7, 6]), 0.1)) > float(loss) + 100


def test_an_image_in_a_querys_list_is_no_negative_of_that_query_alone():
  # image 1 is in the list of query 0, image 0 is not in that of query 1
  score_QN = jnp.array([[2.0, 5.0], [1.0, 3.0]])
  rows = (0 + np.log(np.exp(1) + np.exp(3)) - 3) / 2
  columns = (np.log(np.exp(2) + np.exp(1)) - 2 + 0) / 2
  listed_QN = jnp.array([[True, True], [False, True]])
  loss = contrastive(score_QN, jnp.array([0, 1]), 1.0, listed_QN=listed_QN)
  assert float(loss) == pytest.approx((rows + columns) / 2, abs=1e-6)


def test_semi_positives_share_the_target_of_a_row_by_their_weights():
  score_QN = jnp.array([[1.0, 0.0], [0.0, 1.0]])
  semi_QM = jnp.array([[0.5, 9.0], [0.25, 0.75]])
  weight_QM = jnp.array([[1.0, 0.0], [0.4, 0.6]])
  first = np.log(np.exp(1) + 1 + np.exp(0.5)) - 0.7 * 1.0 - 0.3 * 0.5  # the second, of weight 0, is left out
  second = np.log(1 + np.exp(1) + np.exp(0.25) + np.exp(0.75)) - 0.7 * 1.0 - 0.3 * (0.4 * 0.25 + 0.6 * 0.75)
  column = np.log(np.exp(1) + 1) - 1
  loss = contrastive(score_QN, jnp.arange(2), 1.0, semi_QM, weight_QM, semi_share=0.3)
  assert float(loss) == pytest.approx(0.5 * ((first + second) / 2 + column), abs=1e-6)


def test_a_query_without_semi_positives_keeps_its_whole_target():
  score_QN = jax.random.normal(jax.random.key(1), (3, 3))
  none_QM = jnp.zeros((3, 2))
  with_none = contrastive(score_QN, jnp.arange(3), 0.2, none_QM, none_QM, semi_share=0.5)
  chex.assert_trees_all_close(with_none, contrastive(score_QN, jnp.arange(3), 0.2), rtol=1e-6)


def test_relative_noise_keeps_the_feature_and_published_noise_drowns_it():
  width = 512
  feature_D = jnp.zeros(width).at[0].set(1.0)
  keys = jax.random.split(jax.random.key(0), 64)
  cosine = lambda kind, scale: jax.vmap(lambda key: add_noise(key, feature_D, kind, scale) @ feature_D)(keys)
  assert float(cosine("relative", 0.5).min()) > 0.85
  assert float(jnp.abs(cosine("published", 1.0)).max()) < 0.2
  assert float(cosine("none", 1.0).min()) == 1.0


def test_an_unknown_kind_of_noise_is_refused():
  with pytest.raises(ValueError, match="loud.*none, relative, published"):
    add_noise(jax.random.key(0), jnp.ones(4), "loud", 1.0)
