"""The 8-bit copy: each lemma of docs/proof.md that it rests on, in float64; when it is made and used."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import qat_jax
from qat_jax.adaptation import unit
from qat_jax.search import coarse, exact, gallery, gates
from qat_jax.search.gallery import parts
from qat_jax.types import Adaptation, as_gallery

ITEMS, WIDTH = 500, 40


def features(kind: str) -> np.ndarray:
  rng = np.random.default_rng(0)
  random_ND = rng.standard_normal((ITEMS, WIDTH))
  large_D = np.where(np.arange(WIDTH) < 3, 100, 1)
  item_ND = {
    "random": random_ND,
    "equal": np.repeat(random_ND[:1], ITEMS, 0),
    "cone with large dimensions": large_D * (rng.standard_normal(WIDTH) + 0.1 * random_ND),
    "constant dimensions": np.where(np.arange(WIDTH) < 20, 1, random_ND),
    "subnormal": np.where(rng.random((ITEMS, WIDTH)) < 0.5, 1e-41, 1) * random_ND,
    "one unlike": np.concatenate([random_ND[:1], np.repeat(random_ND[1:2], ITEMS - 1, 0) + 1e-6 * random_ND[1:]]),
  }[kind]
  return unit(item_ND)


KINDS = ["random", "equal", "cone with large dimensions", "constant dimensions", "subnormal", "one unlike"]
ON = pytest.mark.parametrize("kind", KINDS)


def in_float64(items: coarse.Coarse) -> np.ndarray:
  scale_N1, step_D, value_ND, centre_D = (
    np.asarray(x, np.float64) for x in (items.scale[:, None], items.step, items.values, items.centre)
  )
  return centre_D + scale_N1 * step_D * value_ND


@ON
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_lemma_6_what_the_copy_leaves_out_is_no_more_than_it_says(kind, dtype):
  item_ND = jnp.asarray(features(kind), dtype)
  items = coarse.copied(item_ND)
  rest_ND = np.asarray(item_ND, np.float64) - in_float64(items)
  error_N, step_error_N = (np.linalg.norm(x, axis=1) for x in (rest_ND, rest_ND / np.asarray(items.step, np.float64)))
  assert (error_N <= items.error).all() and (step_error_N <= items.step_error).all()
  assert (np.asarray(items.error) <= 1.01 * error_N + 1e-5).all()
  lengths_N = np.asarray(items.scale, np.float64) * np.linalg.norm(np.asarray(items.values, np.float64), axis=1)
  assert lengths_N.max() <= items.reach
  if kind == "cone with large dimensions":  # without centre and steps it would be 0.02
    assert error_N.max() < 2e-3


@ON
@pytest.mark.parametrize(("columns", "portions"), [(1, 2), (2, 2), (7, 1), (7, 2), (45, 1)])
@pytest.mark.parametrize("like", ["random", "an item", "large dimensions"])
def test_lemmas_7_and_8_inner_products_lie_in_their_intervals(kind, columns, portions, like):
  rng = np.random.default_rng(1)
  item_ND = np.float32(features(kind))
  column_DC = np.float32(unit(rng.standard_normal((columns, WIDTH))).T)
  if like == "an item":
    column_DC = item_ND[:columns].T
  elif like == "large dimensions":
    column_DC = np.where(np.arange(WIDTH)[:, None] < 3, 1e3, 1e-3).astype(np.float32) * column_DC
  items = coarse.copied(jnp.asarray(item_ND))
  product_NC, doubt_NC = map(
    np.asarray, jax.jit(lambda x, y: coarse.intervals(x, coarse.cut_columns(y, x, portions=portions)))(items, column_DC)
  )
  exact_NC = item_ND.astype(np.float64) @ column_DC
  assert (np.abs(product_NC.astype(np.float64) - exact_NC) <= doubt_NC).all()
  if kind == "random" and like == "random":
    assert doubt_NC.max() < (0.012 if portions == 2 else 0.025)


@ON
@pytest.mark.parametrize("gate", ["even", "random", "one dimension", "few dimensions", "small", "negative"])
@pytest.mark.parametrize("queries", [1, 3])
def test_lemma_11_no_gate_makes_an_item_shorter_than_its_bound(kind, gate, queries):
  rng = np.random.default_rng(1)
  item_ND = np.float32(features(kind))
  gate_DQ = {
    "even": np.ones((WIDTH, queries)),
    "random": 1 + 0.3 * rng.standard_normal((WIDTH, queries)),
    "one dimension": np.eye(WIDTH)[:, :queries],
    "few dimensions": np.where(np.arange(WIDTH)[:, None] < 3, 1e3, 1e-3) * np.ones(queries),
    "small": 4e-3 * rng.random((WIDTH, queries)),
    "negative": -rng.random((WIDTH, queries)),
  }[gate]
  square_DQ = np.float32(np.square(gate_DQ))
  items = coarse.copied(jnp.asarray(item_ND))

  def least(items: coarse.Coarse, square_DQ: jax.Array) -> jax.Array:
    columns = coarse.cut_columns(square_DQ * items.centre[:, None], items)
    product_NQ, doubt_NQ = coarse.intervals(items, columns)
    return gates.least_squares(items, gates.cut_gates(square_DQ, items, "int8"), product_NQ - doubt_NQ)

  least_NQ = np.asarray(jax.jit(least)(items, square_DQ), np.float64)
  exact_NQ = np.square(item_ND.astype(np.float64)) @ square_DQ
  assert (least_NQ <= exact_NQ).all()
  if kind == "random" and gate in ("even", "random"):
    assert (least_NQ >= 0.85 * exact_NQ).all()


def test_the_sums_of_the_widest_features_fit_in_32_bits():
  assert coarse.WIDEST * coarse.LARGEST**2 < 1 << 31
  ones_ND = jnp.full((2, coarse.WIDEST), coarse.WIDEST**-0.5)
  items = coarse.copied(ones_ND)._replace(values=jnp.full(ones_ND.shape, 127, jnp.int8))
  columns = coarse.cut_columns(jnp.ones((coarse.WIDEST, 2)), items)._replace(
    values=jnp.full((coarse.WIDEST, 2), 127, jnp.int8)
  )
  sums = jnp.matmul(items.values, columns.values, preferred_element_type=jnp.int32)
  assert (sums == coarse.WIDEST * 127**2).all()


@pytest.fixture
def eager(monkeypatch):
  """Makes a copy of every gallery that was searched often enough, and uses it."""
  monkeypatch.setattr(coarse, "LEAST_NUMBERS", 0)
  monkeypatch.setattr(coarse, "multiplies_faster", lambda *_: True)


def adaptation(rank: int) -> Adaptation:
  rng = np.random.default_rng(2)
  left, right = 0.1 * rng.standard_normal((2, 3, WIDTH, rank)).astype(np.float32)
  return Adaptation(np.float32(unit(rng.standard_normal((3, WIDTH)))), np.ones((3, 1), np.float32), left, right)


def copies(array) -> list:
  return [part.coarse for part in parts(as_gallery(array), None, None, 1)]


@pytest.mark.parametrize("rank", [0, 3, 24])
@ON
def test_no_bit_of_a_ranking_changes(eager, monkeypatch, rank, kind):
  array = jnp.asarray(features(kind), jnp.float32)
  first = qat_jax.rank(adaptation(rank), array, 10)
  looks = []
  filtered = exact.filtered
  monkeypatch.setattr(exact, "filtered", lambda *args: looks.append(filtered(*args)) or looks[-1])
  later = [qat_jax.rank(adaptation(rank), array, 10) for _ in range(coarse.AFTER)][-1]
  assert any(look.coarse for look in looks)
  np.testing.assert_array_equal(first.ids, later.ids)
  np.testing.assert_array_equal(first.scores, later.scores)


def test_a_copy_is_made_once_for_a_gallery_that_is_searched_again(eager, monkeypatch):
  array = jnp.asarray(features("random"), jnp.float32)
  made = [copies(array)[0] for _ in range(coarse.AFTER + 1)]
  assert made[: coarse.AFTER - 1] == [None] * (coarse.AFTER - 1)
  assert made[-1] is not None and made[-1] is made[-2]
  monkeypatch.setenv(coarse.SWITCH, "float32")
  assert copies(array) == [None]


def test_of_two_ways_the_quicker_one_is_taken_and_the_other_tried_now_and_then():
  trial, cost = coarse.Trial(), (1.0, 0.5)
  taken = []
  for call in range(3 * coarse.AGAIN):
    cost = (1.0, 0.5) if call < coarse.AGAIN else (0.2, 0.5)  # the first way becomes quicker
    taken.append(trial.pick("kind"))
    trial.tell("kind", taken[-1], cost[taken[-1]])
  assert taken[: 2 * coarse.TRIES] == [True, False] * coarse.TRIES  # either is tried
  assert all(taken[2 * coarse.TRIES : coarse.AGAIN - 1]) and not taken[coarse.AGAIN - 1]
  assert trial.pick("another")


@pytest.mark.parametrize("many", [0, 1])
def test_where_8_bits_rule_too_little_out_float32_takes_a_look(eager, monkeypatch, many):
  monkeypatch.setattr(exact, "MANY", many)
  array = jnp.asarray(features("random"), jnp.float32)
  gallery.expect_searches(as_gallery(array))
  looks, filtered = [], exact.filtered
  monkeypatch.setattr(exact, "filtered", lambda *args: looks.append(filtered(*args)) or looks[-1])
  qat_jax.rank(adaptation(0), array, 5)
  assert [look.coarse for look in looks] == ([True] if many else [True, False])


def test_a_shard_has_a_copy_of_its_own(eager):
  mesh = jax.make_mesh((4,), ("gallery",), axis_types=(jax.sharding.AxisType.Auto,))
  rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("gallery", None))
  array = jax.device_put(np.float32(features("random")), rows)
  first = qat_jax.rank(adaptation(3), array, 10)
  gallery.expect_searches(as_gallery(array))
  assert [len(x.values) for x in copies(array)] == [ITEMS // 4] * 4
  np.testing.assert_array_equal(qat_jax.rank(adaptation(3), array, 10).ids, first.ids)
