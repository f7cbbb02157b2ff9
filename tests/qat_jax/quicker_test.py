"""Whether narrow products are faster, and right."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qat_jax import quicker
from qat_jax.encoders import tower

KINDS = pytest.mark.parametrize(("kind", "sums"), [("int8", "int32"), ("bfloat16", "float32")])


def tried(monkeypatch, kind, sums, narrow, share=1.0):
  """Returns what is said where float32 takes a second and the narrow kind so many."""
  clock = iter(np.cumsum([1.0, 1.0, 1.0, narrow] * quicker.TURNS))
  monkeypatch.setattr(quicker, "time", types.SimpleNamespace(perf_counter=lambda: next(clock)))
  return quicker.multiplies_faster.__wrapped__(kind, sums, (4, 512, 2), share)


@KINDS
def test_a_kind_is_taken_where_it_is_quicker(monkeypatch, kind, sums):
  assert tried(monkeypatch, kind, sums, 0.7)
  assert not tried(monkeypatch, kind, sums, 1.1)
  assert not tried(monkeypatch, kind, sums, 0.7, share=0.6)


@KINDS
def test_a_kind_whose_sums_are_wrong_is_not_taken(monkeypatch, kind, sums):
  real = jnp.matmul
  monkeypatch.setattr(jnp, "matmul", lambda *args, **kind: real(*args, **kind) - 1)
  assert not tried(monkeypatch, kind, sums, 0.1)


def test_a_kind_that_xla_refuses_is_not_taken(monkeypatch):
  def refused(*_, **__):
    raise RuntimeError("unimplemented")

  monkeypatch.setattr(jnp, "matmul", refused)
  assert not tried(monkeypatch, "bfloat16", "float32", 0.1)


def test_it_is_tried_once_even_while_a_caller_is_traced(monkeypatch):
  quicker.multiplies_faster.cache_clear()
  asked = []
  faster = quicker._faster
  monkeypatch.setattr(quicker, "_faster", lambda *args: asked.append(faster(*args)) or asked[-1])
  answers = []

  @jax.jit
  def traced(x):
    answers.append(quicker.multiplies_faster("int8", "int32", (64, 32, 2)))
    return x

  traced(1.0), traced(jnp.ones(2))
  assert answers == 2 * asked and len(asked) == 1


@pytest.mark.parametrize("fast", [True, False])
def test_a_tower_multiplies_bfloat16_itself_only_where_that_is_faster(monkeypatch, fast):
  monkeypatch.setattr(tower, "multiplies_faster", lambda *_: fast)
  layer = tower._dense(8, jnp.dtype("bfloat16"), "layer")
  x = np.linspace(-1, 1, 64, dtype=np.float32).reshape(4, 16)
  params = layer.init(jax.random.key(0), x)
  program = jax.jit(layer.apply).lower(params, x)
  assert ("x8xbf16" in program.as_text()) == fast
  kernel = np.asarray(params["params"]["kernel"].astype(jnp.bfloat16), np.float64)
  expected = np.asarray(jnp.asarray(x).astype(jnp.bfloat16), np.float64) @ kernel
  np.testing.assert_allclose(program.compile()(params, x), expected, atol=1e-5)
