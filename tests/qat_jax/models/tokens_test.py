import chex
import flax.linen as nn
import jax

from qat_jax.models.tokens import Attention


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
