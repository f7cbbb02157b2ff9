import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from qat_jax.models import forms
from qat_jax.types import SemiPositives
from train import batches
from train.step import LossSettings, first_state, make_optimiser, make_step

ADAPTIVE = {"hidden": 16, "rank": 2, "token_hidden": 8, "maps_gallery": True}
QUERY_ONLY = {"hidden": 16, "maps_gallery": True}


@functools.cache
def step_on(devices: int, settings: LossSettings, form: str = "query_only", lists: bool = False):
  rng = np.random.default_rng(0)
  features = rng.normal(size=(16, 6)).astype(np.float32)
  semi = None
  if settings.semi_share:
    semi = SemiPositives(rng.integers(0, 16, (16, 2)), np.full((16, 2), 0.5, np.float32))
  module = forms.FORMS[form](6, **(ADAPTIVE if form == "adaptive" else QUERY_ONLY))
  variables = forms.initialise(module, jax.random.key(0))
  # away from the zero start, where some gradients vanish
  params = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(1), x.shape), variables["params"])
  rows = (np.arange(8), np.arange(8, 16), np.array([0, 1, 2, 3, 4, 4, 6, 7]))
  listed_QN = rng.random((8, 8)) < 0.3 if lists else None
  batch = batches.read_batch(rows, features, features, semi, devices, listed_QN)
  optimiser = optax.sgd(1.0)
  step = make_step(module, variables["constants"], optimiser, settings, 0, "device")
  run = jax.pmap(step, axis_name="device", in_axes=(None, 0), out_axes=None, devices=jax.devices()[:devices])
  return run(first_state(params, 0.07, optimiser), batch)


@pytest.mark.parametrize(
  ("form", "settings"),
  [("adaptive", LossSettings()), ("query_only", LossSettings("published", 0.1, 0.3))],
  ids=["adaptive", "semi-positives"],
)
def test_four_devices_give_the_gradient_of_one(form, settings):
  # with plain gradient descent of rate 1 the parameters differ by the gradient
  state_one, measures_one = step_on(1, settings, form)
  state_four, measures_four = step_on(4, settings, form)
  assert float(measures_one["gradient_norm"]) > 1e-2
  chex.assert_trees_all_close(state_one.params, state_four.params, atol=1e-6)
  chex.assert_trees_all_close(measures_one, measures_four, rtol=1e-5)


def test_four_devices_leave_out_what_lists_have_as_one_does():
  state_one, measures_one = step_on(1, LossSettings(), lists=True)
  state_four, measures_four = step_on(4, LossSettings(), lists=True)
  chex.assert_trees_all_close(state_one.params, state_four.params, atol=1e-6)
  chex.assert_trees_all_close(measures_one, measures_four, rtol=1e-5)
  assert float(measures_one["loss"]) < float(step_on(1, LossSettings())[1]["loss"]) - 0.1


def test_a_step_moves_the_parameters_and_leaves_the_best_to_validation():
  state, measures = step_on(1, LossSettings("published", 0.1, 0.3))
  assert int(state.step) == 1
  assert np.isfinite(float(measures["loss"]))
  assert float(state.best_value) == -np.inf
  moved = jax.tree.map(lambda new, old: float(jnp.abs(new - old).max()), state.params, state.best_params)
  assert max(jax.tree.leaves(moved)) > 1e-3


GOLDEN = {
  "loss": [9.0517235, 11.189655, 8.738067],
  "gradient_norm": [13.733725, 14.421822, 11.243238],
  "temperature": [0.07, 0.070351034, 0.07105933],
}


def test_three_steps_from_fixed_numbers_give_the_numbers_written_down():
  """No draw of a library decides them but the noise's: parameters are NumPy's, and nothing drops out."""
  rng = np.random.default_rng(0)
  image_ND = rng.normal(size=(16, 6)).astype(np.float32)
  query_ND = (image_ND + 0.5 * rng.normal(size=(16, 6))).astype(np.float32)
  semi = SemiPositives(rng.integers(0, 16, (16, 2)).astype(np.int32), np.full((16, 2), 0.5, np.float32))
  module = forms.adaptive(6, hidden=8, dropout=0.0, maps_gallery=True, rank=2, token_hidden=8)
  variables = forms.initialise(module, jax.random.key(0))
  params = jax.tree.map(lambda x: jnp.asarray(0.3 * rng.normal(size=x.shape), jnp.float32), variables["params"])
  optimiser = make_optimiser(10, 1e-2, 1e-5, 2, 1e-2)
  step = make_step(module, variables["constants"], optimiser, LossSettings("relative", 0.5, 0.2), 0, "device")
  run = jax.pmap(step, axis_name="device", in_axes=(None, 0), out_axes=None)
  state, measured = first_state(params, 0.07, optimiser), []
  pairs = batches.group(np.arange(16) // 2, "image")
  for number in range(3):
    batch = batches.read_batch(
      batches.draw_pairs(pairs, 8, 0, number), query_ND, image_ND, semi, jax.local_device_count()
    )
    state, measures = run(state, batch)
    measured.append(measures)
  for name, values in GOLDEN.items():
    np.testing.assert_allclose([float(one[name]) for one in measured], values, rtol=1e-5, err_msg=name)
