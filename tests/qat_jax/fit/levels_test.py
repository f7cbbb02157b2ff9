import dataclasses

import jax
import numpy as np
import pytest

from qat_jax.adaptation import score, unit
from qat_jax.fit import levels, memory
from qat_jax.fit.training import PLAIN, Training, evenly
from qat_jax.models.head import Head
from qat_jax.types import Relevance
from qat_jax.validation import Validator

WIDTH = 6


def with_hubs():
  """Returns training and validation: half of the gallery lies in the middle of the queries and answers none."""
  rng = np.random.default_rng(0)
  middle_D = np.ones(WIDTH) / np.sqrt(WIDTH)
  around = lambda count, far: unit(middle_D + far * rng.normal(size=(count, WIDTH))).astype(np.float32)
  query_QD, hub_ND = around(60, 0.4), around(40, 0.1)
  item_ND = unit(query_QD + 0.25 * rng.normal(size=query_QD.shape)).astype(np.float32)
  relevance = Relevance([np.array([i]) for i in range(60)], [np.array([], int)] * 60)
  validator = Validator(query_QD, np.concatenate([item_ND, hub_ND]), relevance, limit=0, seed=0)
  return Training("text", around(500, 0.4), around(500, 0.4), np.arange(500)), validator


def test_levelling_takes_hubs_out_of_the_way():
  training, validator = with_hubs()
  plain = validator(PLAIN)
  head = levels.fit_levels(training, validator, PLAIN)
  assert validator(head) > plain + 0.05
  assert head.settings["queries"] == 500
  for fit in (levels.csls, levels.inverted_softmax, levels.nearest_neighbour_normalisation):
    assert validator(fit(training, validator)) > plain + 0.03


def test_csls_ranks_by_twice_the_cosine_less_the_neighbourhood():
  training, validator = with_hubs()
  (head,) = levels._heads(training, PLAIN, levels.served(training, PLAIN, 500), [(10, 0.0, 0.5)])
  query_QD, item_ND = unit(validator.query_QD), unit(np.asarray(validator.gallery_ND))
  near_N = np.sort(item_ND @ unit(training.queries).T, axis=1)[:, -10:].mean(axis=1)
  expected_QN = np.argsort(-(2 * query_QD @ item_ND.T - near_N), axis=1)
  module = head.module(WIDTH)
  items = module.apply(head.variables, item_ND, method="prepare")
  got_QN = np.argsort(-np.asarray(module.apply(head.variables, query_QD).query @ items.T), axis=1)
  assert np.mean(got_QN[:, :5] == expected_QN[:, :5]) > 0.99  # the training queries are kept in half precision


def test_training_queries_are_served_without_what_a_memory_keeps_of_their_instance():
  training, validator = with_hubs()
  training = training._replace(instance=np.arange(500) // 2)
  head = memory.fit_memory(training, validator, PLAIN, 100)
  rows = evenly(500, 100)
  assert np.array_equal(memory.pairs_kept(training, 100), rows)
  folded_MD = levels.served(training, head, 500)
  query = int(rows[7])
  left = rows[training.instance[rows] != training.instance[query]]
  assert len(left) < len(rows)
  constants = head.variables["constants"]
  kept = np.isin(rows, left)
  fewer = constants | {name: np.asarray(constants[name])[kept] for name in ("queries", "images")}
  module = type(head)(head.form, head.settings | {"pairs": len(left)}, {}).module(WIDTH)
  expected = module.apply({"params": {}, "constants": fewer}, training.queries[query : query + 1]).query
  np.testing.assert_allclose(folded_MD[query], expected[0], atol=1e-3)
  seen = head.module(WIDTH).apply(head.variables, training.queries[query : query + 1]).query
  assert np.abs(folded_MD[query] - seen[0]).max() > 1e-2


def test_what_a_memory_keeps_stays_hidden_where_its_items_are_projected():
  training, validator = with_hubs()
  wide = memory.captioned(training, validator, memory.fit_memory(training, validator, PLAIN, 100), training.queries, 0)
  turned = memory.fit_projection(training, wide, 2 * WIDTH)
  turn_FF = np.asarray(turned.variables["constants"]["directions"])
  expected_MF = levels.served(training, wide, 500).astype(np.float32) @ turn_FF.T
  np.testing.assert_allclose(levels.served(training, turned, 500), expected_MF, atol=2e-3)


def test_one_instance_alone_levels_nothing():
  training, validator = with_hubs()
  with pytest.raises(ValueError, match="all training rows are of one instance"):
    levels.fit_levels(training._replace(instance=np.zeros(500)), validator, PLAIN)
  assert levels.csls(training._replace(queries=None), validator) is None


def test_a_map_that_makes_items_longer_levels_them_no_more():
  training, _ = with_hubs()
  paper = Head("paper", {"rank": 2, "token_hidden": 8, "heads": 1, "layers": 1}, {})
  variables = paper.initialise(WIDTH)
  longer = jax.tree.map(lambda x: x, variables)
  decoder = longer["params"]["left"]
  longer["params"]["left"] = jax.tree.map(lambda x: 1000 * x, decoder)
  small, large = (levels.served(training, dataclasses.replace(paper, variables=one), 50) for one in (variables, longer))
  module, items = paper.module(WIDTH), unit(training.images[:64]).astype(np.float32)
  scores = np.asarray(score(module.apply(variables, training.queries[evenly(500, 50)]), items))
  assert np.corrcoef(scores.ravel(), (small.astype(np.float32) @ items.T).ravel())[0, 1] > 0.8
  assert np.isfinite(large).all()
  assert 0.2 < np.linalg.norm(large) / np.linalg.norm(small) < 5
