import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qat_jax.models.dropout import Dropout, kept_mask


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_so_many_are_kept_as_the_rate_says_in_every_row_and_every_column(rate):
  keys = jax.random.split(jax.random.key(0), 2000)
  mask_BN = np.asarray(jax.vmap(lambda key: kept_mask(key, (500,), rate))(keys), float)
  sigma = (rate * (1 - rate)) ** 0.5
  assert mask_BN.mean() == pytest.approx(1 - rate, abs=5 * sigma * mask_BN.size**-0.5)
  for axis, count in ((0, 2000), (1, 500)):  # of 500 columns and 2,000 rows none is far off, nor all too near
    off = (mask_BN.mean(axis=axis) - (1 - rate)) / (sigma * count**-0.5)
    assert np.abs(off).max() < 5
    assert np.std(off) == pytest.approx(1, abs=0.15)


def test_masks_of_other_keys_and_of_neighbouring_numbers_are_unrelated():
  keys = jax.vmap(lambda row: jax.random.fold_in(jax.random.key(0), row))(jnp.arange(2000))
  mask_BN = np.asarray(jax.vmap(lambda key: kept_mask(key, (256,), 0.5))(keys), float) - 0.5
  for one, other in (
    (mask_BN[1:], mask_BN[:-1]),
    (mask_BN[:, 1:], mask_BN[:, :-1]),
    (mask_BN[:, 16:], mask_BN[:, :-16]),
  ):
    assert abs(4 * (one * other).mean()) < 5 * one.size**-0.5
  related_BB = 4 * mask_BN @ mask_BN.T / 256 - np.eye(len(mask_BN))
  assert np.abs(related_BB).max() < 6.5 * 256**-0.5
  assert np.std(related_BB) == pytest.approx(256**-0.5, rel=0.02)


def test_what_is_kept_is_scaled_so_that_the_mean_stays():
  x_N = jnp.ones(100_000)
  out_N = Dropout(0.2).apply({}, x_N, True, rngs={"dropout": jax.random.key(0)})
  assert set(np.unique(out_N)) == {0, np.float32(1.25)}
  assert float(out_N.mean()) == pytest.approx(1, abs=5 * 0.5 * 100_000**-0.5)
  assert Dropout(0.2).apply({}, x_N, False) is x_N
  assert Dropout(0.0).apply({}, x_N, True) is x_N
