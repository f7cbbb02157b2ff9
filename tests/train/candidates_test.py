import jax.numpy as jnp
import numpy as np

from qat_jax.adapter import Adapter, Head
from qat_jax.fit.closed_form import unit
from qat_jax.types import Relevance
from qat_jax.validation import Validator
from train import candidates


def test_rows_with_second_views_come_instance_by_instance():
  instance_N = np.array(["d", "b", "a", "b", "c", "a", "e", "a"])
  rows = candidates.with_second_views(instance_N, 10)
  assert sorted(rows) == [1, 2, 3, 5, 7]
  assert list(instance_N[rows]) in ([*"aaabb"], [*"bbaaa"])
  assert len(candidates.with_second_views(instance_N, 2)) == 2


def test_a_memory_closes_a_gap_that_the_plain_score_cannot():
  rng = np.random.default_rng(0)
  centre_ID = rng.normal(size=(300, 8))
  image_ND, text_ND = unit(centre_ID).astype(np.float32), unit(centre_ID + 3 * np.eye(8)[0]).astype(np.float32)
  train, val = slice(0, 200), slice(200, 300)
  relevance = Relevance([np.array([i]) for i in range(100)], [np.array([], int)] * 100)
  validator = Validator(text_ND[val], image_ND[val], relevance, limit=0, seed=0)
  plain = Head("plain", {}, {"params": {}, "constants": {}})
  frozen_Q = validator.precisions(plain.module(8), plain.variables)
  data = candidates.Training("text", text_ND[train], image_ND[train], np.arange(200), None, validator, frozen_Q)
  head = candidates.remembering(data, Adapter(8, {"text": plain}), 50)
  constants = head.variables["constants"]
  assert constants["queries"].shape == (50, 8)
  np.testing.assert_array_equal(constants["queries"][-1], jnp.asarray(text_ND[199], jnp.float16))
  assert validator(head.module(8), head.variables) > frozen_Q.mean() + 0.1
