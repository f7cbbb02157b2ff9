import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qat_jax.adaptation import normalise
from qat_jax.models import forms as hypernetwork
from qat_jax.models.head import Head
from qat_jax.search.rank import score

WIDTH = 12
SMALL = {
  "static": {},
  "query_only": {"hidden": 24},
  "adaptive": {"hidden": 24, "rank": 3, "token_hidden": 8, "layers": 1, "steps": 2, "maps_gallery": True},
  "gated": {"hidden": 24},
  "plain": {},
}


@pytest.fixture
def queries():
  return normalise(jax.random.normal(jax.random.key(1), (5, WIDTH)))


@pytest.fixture
def gallery():
  return normalise(jax.random.normal(jax.random.key(2), (7, WIDTH)))


@pytest.mark.parametrize("form", SMALL)
def test_a_zero_start_is_exactly_the_plain_score(form, queries, gallery):
  module = hypernetwork.FORMS[form](WIDTH, **SMALL[form])
  variables = hypernetwork.initialise(module, jax.random.key(0))
  variables["constants"] = hypernetwork.with_statistics(variables["constants"], queries)
  apply = jax.jit(module.apply, static_argnames="method")
  scores_QN = score(apply(variables, queries), apply(variables, gallery, method="prepare"))
  chex.assert_trees_all_close(scores_QN, queries @ gallery.T, atol=1e-6)


FURTHER = {
  "gallery": ("adaptive", SMALL["adaptive"] | {"maps_gallery": True}),
  "static map": ("static", {"maps_gallery": True}),
  "closed_form": ("closed_form", {}),
  "affine": ("affine", {"dimensions": WIDTH}),
  "plda": ("plda", {}),
  "memory": ("remembering", {"form": "query_only", "settings": {"hidden": 24}, "pairs": 4}),
  "captions": ("remembering", {"form": "plain", "settings": {}, "pairs": 4, "captions": "text"}),
  "experts": ("experts", {"form": "plain", "settings": {}, "experts": 3}),
  "levels": ("levelled", {"form": "plain", "settings": {}, "queries": 4, "items": WIDTH, "nearest": 2}),
}


@pytest.mark.parametrize(("form", "settings"), [*SMALL.items(), *FURTHER.values()])
def test_a_head_for_frozen_items_leaves_them_alone(form, settings, gallery):
  module = hypernetwork.FORMS[form](WIDTH, **settings)
  moved = lambda x: x + 0.1 * jax.random.normal(jax.random.key(3), x.shape, jnp.float32).astype(x.dtype)
  variables = jax.tree.map(moved, hypernetwork.initialise(module, jax.random.key(0)))
  apply = jax.jit(module.apply, static_argnames="method")
  head, prepared = Head(form, settings, variables), apply(variables, 3 * gallery, method="prepare")
  chex.assert_trees_all_close(head.prepare(3 * gallery), prepared, atol=1e-6)
  untouched = prepared.shape == gallery.shape and np.allclose(prepared, normalise(gallery), atol=1e-6)
  assert (head.space == "frozen") == untouched


@pytest.mark.parametrize("form", ["static", "query_only", "adaptive", "gated"])
def test_the_first_gradient_of_a_zero_start_moves_it(form, queries, gallery):
  module = hypernetwork.FORMS[form](WIDTH, **SMALL[form])
  variables = hypernetwork.initialise(module, jax.random.key(0))

  def loss(params):
    full = {"params": params, "constants": variables["constants"]}
    return jnp.sum(jnp.square(score(module.apply(full, queries), module.apply(full, gallery, method="prepare"))))

  norms = [float(jnp.linalg.norm(x)) for x in jax.tree.leaves(jax.jit(jax.grad(loss))(variables["params"]))]
  assert max(norms) > 0 and np.isfinite(norms).all()


def test_the_paper_form_has_no_gate_and_unequal_factors(queries):
  module = hypernetwork.paper(WIDTH, rank=3, token_hidden=8, layers=1, steps=2, heads=2)
  adaptation = jax.jit(module.apply)(hypernetwork.initialise(module, jax.random.key(0)), queries)
  assert float(jnp.abs(adaptation.gate).max()) == 0
  assert adaptation.left.shape == (5, WIDTH, 3)
  assert float(jnp.abs(adaptation.left - adaptation.right).max()) > 1e-3
  chex.assert_trees_all_close(jnp.linalg.norm(adaptation.query, axis=1), jnp.ones(5), atol=1e-6)


def test_standardised_queries_have_mean_zero_and_scale_one(queries):
  constants = hypernetwork.with_statistics({}, queries)
  input_QD = hypernetwork.Standardise().apply({"constants": constants["standardise"]}, queries)
  chex.assert_trees_all_close(input_QD.mean(axis=0), jnp.zeros(WIDTH), atol=1e-6)
  assert float(jnp.sqrt(jnp.mean(input_QD**2))) == pytest.approx(1, abs=1e-5)


def test_dropout_acts_in_training_only(queries):
  module = hypernetwork.query_only(WIDTH, 24, dropout=0.5)
  variables = hypernetwork.initialise(module, jax.random.key(0))
  variables["params"] = jax.tree.map(
    lambda x: x + 0.1 * jax.random.normal(jax.random.key(5), x.shape), variables["params"]
  )
  train = lambda key: module.apply(variables, queries, train=True, rngs={"dropout": jax.random.key(key)}).query
  assert float(jnp.abs(train(0) - train(1)).max()) > 1e-3
  chex.assert_trees_all_equal(module.apply(variables, queries), module.apply(variables, queries))


@pytest.mark.parametrize(("form", "settings"), [("adaptive", {}), ("gated", {"linear": True})])
def test_a_query_only_form_of_equal_size_is_within_one_hidden_unit(form, settings):
  shapes = lambda form: jax.eval_shape(lambda: hypernetwork.initialise(form, jax.random.key(0)))
  size = lambda form: hypernetwork.parameters(shapes(form))
  target = size(hypernetwork.FORMS[form](WIDTH))
  hidden = hypernetwork.hidden_of_size(target, WIDTH, **settings)
  assert abs(size(hypernetwork.query_only(WIDTH, hidden, **settings)) - target) <= 2 * WIDTH + 3
