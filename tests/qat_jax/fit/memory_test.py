import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from qat_jax.adaptation import unit
from qat_jax.fit import discriminant, memory
from qat_jax.fit.training import PLAIN, Training
from qat_jax.models.head import Head
from qat_jax.types import Relevance
from qat_jax.validation import Validator


def test_what_cannot_be_fitted_is_none():
  image_ND = np.eye(3)
  validator = Validator(image_ND, image_ND, Relevance([np.array([0])] * 3, [np.array([], int)] * 3), 0, 0)
  assert memory.neighbours(Training("image", image_ND, image_ND, np.arange(3)), validator) is None
  assert memory.neighbours(Training("text", None, image_ND, np.zeros(3)), validator) is None


def test_a_constant_gap_between_text_and_image_is_closed():
  rng = np.random.default_rng(0)
  text_ND = unit(rng.normal(size=(60, 5))).astype(np.float32)
  image_ND = text_ND[:, [1, 2, 3, 4, 0]]  # images lie elsewhere
  relevance = Relevance([np.array([i]) for i in range(60)], [np.array([], int)] * 60)
  validator = Validator(text_ND, image_ND, relevance, limit=0, seed=0)
  head = memory.neighbours(Training("text", text_ND, image_ND, np.arange(60)), validator)
  assert validator(head) > 0.9


def test_rows_with_second_views_come_instance_by_instance():
  instance_N = np.array(["d", "b", "a", "b", "c", "a", "e", "a"])
  rows = memory.with_second_views(instance_N, 10)
  assert sorted(rows) == [1, 2, 3, 5, 7]
  assert list(instance_N[rows]) in ([*"aaabb"], [*"bbaaa"])
  assert len(memory.with_second_views(instance_N, 2)) == 2


def test_a_memory_closes_a_gap_that_the_plain_score_cannot():
  rng = np.random.default_rng(0)
  centre_ID = rng.normal(size=(300, 8))
  image_ND, text_ND = unit(centre_ID).astype(np.float32), unit(centre_ID + 3 * np.eye(8)[0]).astype(np.float32)
  train, val = slice(0, 200), slice(200, 300)
  relevance = Relevance([np.array([i]) for i in range(100)], [np.array([], int)] * 100)
  validator = Validator(text_ND[val], image_ND[val], relevance, limit=0, seed=0)
  data = Training("text", text_ND[train], image_ND[train], np.arange(200))
  head = memory.fit_memory(data, validator, PLAIN, 50)
  constants = head.variables["constants"]
  assert constants["queries"].shape == (50, 8)
  np.testing.assert_array_equal(constants["queries"][-1], jnp.asarray(text_ND[199], jnp.float16))
  assert validator(head) > validator(PLAIN) + 0.1


def named():
  """Returns training and validation whose images look alike but are called apart: captions find what cosine cannot."""
  rng = np.random.default_rng(1)
  look_KD, name_KD = unit(rng.normal(size=(12, 8))), unit(rng.normal(size=(12, 8)))
  kind_N = np.arange(240) % 12
  image_ND = unit(look_KD[kind_N] + 0.4 * rng.normal(size=(240, 8))).astype(np.float32)
  text_ND = unit(name_KD[kind_N] + 0.2 * rng.normal(size=(240, 8))).astype(np.float32)
  asked_KD = unit(name_KD + 0.1 * rng.normal(size=(12, 8))).astype(np.float32)
  relevance = Relevance([np.flatnonzero(kind_N[180:] == kind) for kind in range(12)], [np.array([], int)] * 12)
  validator = Validator(asked_KD, image_ND[180:], relevance, limit=0, seed=0)
  return Training("text", text_ND[:180], image_ND[:180], np.arange(180)), validator


def test_captions_of_the_items_find_by_name_what_looks_like_nothing():
  training, validator = named()
  head = memory.captioned(training, validator, PLAIN, training.queries, 120)
  assert head.settings["pairs"] == 120
  assert head.settings["captions"] == "text"
  assert validator(head) > validator(PLAIN) + 0.05
  both = memory.captioned(training, validator, memory.fit_memory(training, validator, PLAIN, 120), None, 0)
  assert both.form == "remembering"  # one bank for both sides
  assert both.settings["form"] == "plain"
  assert {"weight", "share"} <= both.variables["constants"].keys()


def test_captions_fit_only_where_the_map_leaves_other_dimensions_alone():
  training, _ = named()
  assert memory.can_be_captioned(training, PLAIN)
  paper = Head("paper", {"rank": 1, "token_hidden": 8, "heads": 1, "layers": 1}, {})
  assert not memory.can_be_captioned(training, dataclasses.replace(paper, variables=paper.initialise(8)))


def test_items_are_projected_on_the_directions_along_which_they_have_most(monkeypatch):
  training, validator = named()
  wide = memory.captioned(training, validator, PLAIN, training.queries, 120)
  monkeypatch.setattr(memory, "BLOCK", 50)  # in pieces
  head = memory.captioned(training, validator, PLAIN, training.queries, 120, narrow=9)
  assert head.items_wide(8) == 9
  item_NF = np.asarray(wide.prepare(training.images), np.float64)
  expected_EF = np.linalg.svd(item_NF, full_matrices=False)[2][:9]
  along_EF = np.asarray(head.variables["constants"]["directions"], np.float64)
  np.testing.assert_allclose(along_EF.T @ along_EF, expected_EF.T @ expected_EF, atol=1e-3)
  full = memory.fit_projection(training, wide, 16)
  np.testing.assert_allclose(validator.precisions(full), validator.precisions(wide), atol=1e-5)
  assert validator(PLAIN) < validator(head) <= validator(wide) + 0.02
  assert "share" in head.note and head.note.endswith("; items projected to 9 numbers")
  for width in (1, 17):
    with pytest.raises(ValueError, match=f"items 16 wide cannot be projected to {width}; give a width of 2 to 16"):
      memory.fit_projection(training, wide, width)


def test_a_gate_for_each_dimension_goes_with_captions_but_not_with_their_projection():
  training, _ = named()
  gated = Head("gated", {"hidden": 4}, {})
  gated = dataclasses.replace(gated, variables=gated.initialise(8))
  assert memory.can_be_captioned(training, gated)
  assert not memory.can_be_captioned(training, gated, narrow=9)
  assert memory.can_be_captioned(training, PLAIN, narrow=9)


def test_a_memory_moves_only_queries_as_wide_as_its_pairs():
  rng = np.random.default_rng(0)
  image_ND = unit(np.repeat(rng.normal(size=(60, 8)), 2, axis=0) + 0.3 * rng.normal(size=(120, 8)))
  instance_N = np.repeat(np.arange(60), 2)
  training = Training("image", image_ND[:80], image_ND[:80], instance_N[:80])
  relevance = Relevance([np.array([i]) for i in range(20)], [np.array([], int)] * 20)
  validator = Validator(image_ND[80::2], image_ND[81::2], relevance, limit=0, seed=0)
  assert memory.can_remember(training, PLAIN)
  wider = discriminant.probabilistic(training, validator)
  assert not memory.can_remember(training, wider)
  with pytest.raises(ValueError, match="image queries of the form plda cannot remember pairs: .* 8; they are 10"):
    memory.fit_memory(training, validator, wider, 10)
