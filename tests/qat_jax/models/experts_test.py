"""The form `experts` against its formulas, written out one query and one item at a time in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qat_jax.adaptation import unit
from qat_jax.models.experts import FLOOR
from qat_jax.models.forms import FORMS
from qat_jax.models.head import Head

WIDTH, EXPERTS = 6, 3


def constants(seed=0, alpha=0.1, beta=0.0, high=5.0):
  rng = np.random.default_rng(seed)
  found = {
    "mean": 0.3 * rng.normal(size=(EXPERTS, WIDTH)),
    "query_mean": 0.3 * rng.normal(size=(EXPERTS, WIDTH)),
    "direction": rng.normal(size=(EXPERTS, WIDTH)),
    "bias": 0.1 * rng.normal(size=EXPERTS),
    "map": 2 * rng.normal(size=(EXPERTS, WIDTH, WIDTH)),
    "ratio": rng.exponential(size=(EXPERTS, WIDTH)),
    "total": 1 + rng.exponential(size=(EXPERTS, WIDTH)),
    "offset": rng.normal(size=EXPERTS),
    "high": np.full(EXPERTS, high),
    "middle": np.full(EXPERTS, 1.0),
  }
  return found | {"alpha": alpha, "beta": beta, "typical": 2.0, "longest": 30.0}


def head(found):
  settings = {"form": "plain", "settings": {}, "experts": EXPERTS}
  return Head(
    "experts", settings, {"params": {}, "constants": {n: jnp.asarray(x, jnp.float32) for n, x in found.items()}}
  )


def taken_off(c, z_D):
  """s_k of one item, for each k."""
  density, half = [], []
  for k in range(EXPERTS):
    value = 0.0
    log = c["offset"][k]
    for e in range(WIDTH):
      y = sum((z_D[d] - c["mean"][k, d]) * c["map"][k, d, e] for d in range(WIDTH))
      ratio = c["ratio"][k, e]
      value += 0.5 * ratio / (1 + 2 * ratio) * ratio / (1 + ratio) * y**2
      log -= 0.5 * y**2 / c["total"][k, e]
    half.append(value)
    density.append(log)
  nearest = int(np.argmax([z_D @ c["direction"][k] + c["bias"][k] for k in range(EXPERTS)]))
  top = max(density)
  log_sum = top + np.log(sum(np.exp(x - top) for x in density))
  return [half[k] - c["alpha"] * max(density[k] - log_sum, FLOOR) - c["beta"] * (nearest == k) for k in range(EXPERTS)]


def score(c, q_D, z_D):
  """w(q) · z less what the query's expert takes off, as it is clipped."""
  k = int(np.argmax([q_D @ c["direction"][k] + c["bias"][k] for k in range(EXPERTS)]))
  weight_D = c["ratio"][k] / (1 + 2 * c["ratio"][k])
  w_D = c["map"][k] @ np.diag(weight_D) @ c["map"][k].T @ (q_D - c["query_mean"][k])
  scale = c["longest"] * np.sqrt(w_D @ w_D + c["typical"] ** 2)
  return (w_D @ z_D - min(taken_off(c, z_D)[k], c["high"][k]) + c["middle"][k]) / scale


@pytest.fixture
def rows():
  rng = np.random.default_rng(9)
  return unit(rng.normal(size=(7, WIDTH))), unit(rng.normal(size=(40, WIDTH)))


@pytest.mark.parametrize(
  ("alpha", "beta", "high"), [(0.0, 0.0, 1e9), (0.5, 0.0, 1e9), (0.0, 3.0, 1e9), (0.1, 0.0, 1.2)]
)
def test_the_score_is_that_of_the_formula(rows, alpha, beta, high):
  query_QD, item_ND = rows
  c = constants(alpha=alpha, beta=beta, high=high)
  one = head(c)
  item_NF = np.asarray(one.prepare(item_ND), np.float64)
  query_QF = np.asarray(one.module(WIDTH).apply(one.variables, jnp.asarray(query_QD)).query, np.float64)
  assert item_NF.shape[1] == one.items_wide(WIDTH) == WIDTH + EXPERTS + 1
  np.testing.assert_allclose(np.linalg.norm(item_NF, axis=1), 1, atol=1e-6)
  np.testing.assert_allclose(np.linalg.norm(query_QF, axis=1), 1, atol=1e-6)
  longest = max(np.sqrt(1 + sum(((min(s, high) - 1) / 2) ** 2 for s in taken_off(c, z_D))) for z_D in item_ND)
  assert longest < 0.999 * c["longest"], "an item is shortened: the formula does not tell its score"
  expected_QN = [[score(c, q_D, z_D) for z_D in item_ND] for q_D in query_QD]
  np.testing.assert_allclose(query_QF @ item_NF.T, expected_QN, atol=2e-6)
  clipped = sum(s > high for z_D in item_ND for s in taken_off(c, z_D))
  assert (clipped > 0) == (high == 1.2)


def test_a_posterior_counts_for_no_less_than_the_floor(rows):
  c = constants(alpha=1.0) | {"offset": np.array([0.0, -500.0, 0.0])}
  one = head(c)
  off_NK = one.module(WIDTH).apply(one.variables, jnp.asarray(rows[1], jnp.float32), method="taken_off")
  np.testing.assert_allclose(off_NK, [taken_off(c, z_D) for z_D in rows[1]], rtol=2e-5)
  half_NK = [taken_off(c | {"alpha": 0.0}, z_D) for z_D in rows[1]]
  np.testing.assert_allclose(off_NK[:, 1] - np.array(half_NK)[:, 1], 50, rtol=1e-5)


def test_items_stay_of_unit_length_however_far_out_they_are(rows):
  one = head(constants() | {"map": 1e4 * constants()["map"], "high": np.full(EXPERTS, 1e9), "longest": 1.0})
  item_NF = np.asarray(one.prepare(rows[1]))
  np.testing.assert_allclose(np.linalg.norm(item_NF, axis=1), 1, atol=1e-6)


def test_half_precision_keeps_the_score(rows):
  one = head(constants())
  query_QF = np.asarray(one.module(WIDTH).apply(one.variables, jnp.asarray(rows[0])).query)
  item_NF = np.asarray(one.prepare(rows[1]))
  np.testing.assert_allclose(query_QF @ item_NF.astype(np.float16).T, query_QF @ item_NF.T, atol=1e-3)


def test_the_expert_of_a_query_is_the_nearest(rows):
  c = constants()
  one = head(c)
  expert_Q, cosine_Q = one.module(WIDTH).apply(one.variables, jnp.asarray(rows[0]), method="expert")
  np.testing.assert_array_equal(expert_Q, [np.argmax(c["direction"] @ q_D + c["bias"]) for q_D in rows[0]])
  expected = [q_D @ unit(c["query_mean"][[k]])[0] for q_D, k in zip(rows[0], np.asarray(expert_Q), strict=True)]
  np.testing.assert_allclose(cosine_Q, expected, atol=1e-6)


def test_experts_stand_on_another_form(rows):
  """Queries and items are both what the other form makes of an item."""
  static = FORMS["static"](WIDTH)
  inner = jax.tree.map(lambda x: x + 0.1, static.init(jax.random.key(0), jnp.asarray(rows[0]), method="prepare"))
  plain = head(constants())
  inner = {"params": inner["params"], "constants": {}}
  settings = {"form": "static", "settings": {}, "experts": EXPERTS}
  variables = {"params": {"head": inner["params"]}, "constants": plain.variables["constants"] | {"head": {}}}
  mapped, moved = Head("experts", settings, variables), Head("static", {}, inner)
  np.testing.assert_allclose(mapped.prepare(rows[1]), plain.prepare(moved.prepare(rows[1])), atol=1e-6)
  query = lambda one, x: one.module(WIDTH).apply(one.variables, jnp.asarray(x, jnp.float32)).query
  np.testing.assert_allclose(query(mapped, rows[0]), query(plain, moved.prepare(rows[0])), atol=1e-6)
  assert len({mapped.space, plain.space, moved.space}) == 3


def test_variables_may_be_numpy_arrays_as_files_give_them(rows):
  one = head(constants())
  as_read = Head("experts", one.settings, jax.tree.map(np.asarray, one.variables))
  module = one.module(WIDTH)
  expected = module.apply(one.variables, jnp.asarray(rows[0]))
  np.testing.assert_array_equal(module.apply(as_read.variables, jnp.asarray(rows[0])).query, expected.query)
