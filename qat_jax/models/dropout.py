"""Dropout whose mask costs a few integer operations a number: a hash of a key and of the number's place.

A draw of `jax.random` is twenty rounds of Threefry, and two numbers are drawn to keep one. On a CPU the masks of a step
took longer than its largest matrix product.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp


class Dropout(nn.Module):
  """In training sets each number to zero with probability `rate`, and scales what stays so that the mean stays."""

  rate: float

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    if not train or self.rate == 0:
      return x
    return jnp.where(kept_mask(self.make_rng("dropout"), x.shape, self.rate), x / (1 - self.rate), 0)


def kept_mask(key: jax.Array, shape: tuple[int, ...], rate: float) -> jax.Array:
  """Returns a mask that is False with probability `rate`, to 2⁻³², the same for the same key.

  The key's words are what makes masks unrelated: they have to be random themselves, as those of `jax.random` are.
  """
  words = jax.random.key_data(key)
  place = jnp.arange(math.prod(shape), dtype=jnp.uint32).reshape(shape)
  return _hash(_hash(place ^ words[0]) ^ words[-1]) >= jnp.uint32(rate * 2**32)


def _hash(x: jax.Array) -> jax.Array:
  """Returns 32 bits, each of which hangs on every bit of x: lowbias32 (github.com/skeeto/hash-prospector)."""
  x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
  x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
  return x ^ (x >> 16)
