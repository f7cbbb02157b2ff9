import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from qat_jax.models.tokens import Attention, Tokens


def test_attention_begins_and_computes_as_flaxs_does():
  token_QLH = jax.random.normal(jax.random.key(0), (3, 5, 8))
  flaxs, own = nn.MultiHeadDotProductAttention(2), Attention(2, dropout=0.0)
  variables = flaxs.init(jax.random.key(1), token_QLH)
  chex.assert_trees_all_equal(own.init(jax.random.key(1), token_QLH, False), variables)
  moved = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(jax.random.key(2), x.shape), variables)
  chex.assert_trees_all_close(own.apply(moved, token_QLH, False), flaxs.apply(moved, token_QLH), atol=1e-5)


def test_attention_drops_weights_in_training_only():
  token_QLH = jax.random.normal(jax.random.key(0), (1, 5, 8))
  own = Attention(2, dropout=0.5)
  variables = own.init(jax.random.key(1), token_QLH, False)
  out = lambda train, key: own.apply(variables, token_QLH, train, rngs={"dropout": jax.random.key(key)})
  assert float(abs(out(True, 0) - out(True, 1)).max()) > 1e-3
  chex.assert_trees_all_equal(out(False, 0), out(False, 1))


def tokens_and_gradient(**settings):
  query_QD = jax.random.normal(jax.random.key(0), (3, 6))
  module = Tokens(rank=2, hidden=8, layers=2, steps=2, heads=2, dropout=0.3, **settings)
  variables = Tokens(rank=2, hidden=8, layers=2, steps=2, heads=2, dropout=0.3).init(jax.random.key(1), query_QD, False)

  def total(variables):
    parts = module.apply(variables, query_QD, True, rngs={"dropout": jax.random.key(2)})
    return sum(jnp.sum(part * jnp.cos(part)) for part in parts), parts

  (_, parts), gradient = jax.value_and_grad(total, has_aux=True)(variables)
  return parts, gradient


@pytest.mark.long
def test_rematerialised_layers_give_the_same_tokens_and_gradient():
  chex.assert_trees_all_close(tokens_and_gradient(remat=True), tokens_and_gradient(), rtol=1e-4, atol=1e-5)


def test_half_precision_is_near_and_is_used():
  (parts, _), (half, _) = tokens_and_gradient(), tokens_and_gradient(dtype="bfloat16")
  chex.assert_trees_all_close(half, parts, atol=0.1)
  assert float(abs(half[1] - parts[1]).max()) > 1e-5
  chex.assert_type(half, jnp.float32)
