"""One training step, pure: (state, batch) → (state, measures), the same on one device and on many.

Randomness comes from a key for every row of the global batch, so that it does not depend on how rows are spread over
devices.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from qat_jax.adaptation import normalise, score
from train.losses import add_noise, contrastive

MIN_TEMPERATURE = 0.005
Array = jax.Array | np.ndarray  # on the host until the step takes it


class LossSettings(NamedTuple):
  """What the loss of a run is made of; see `train.losses`."""

  noise: str = "relative"
  noise_scale: float = 0.5
  semi_share: float = 0.0


class Batch(NamedTuple):
  """B pairs of one device: a query and an image of the same instance (float32, unit), and the rows' places."""

  query: Array  # BD
  image: Array  # BD
  instance: Array  # B
  semi: Array  # BMD, M may be 0
  semi_weight: Array  # BM
  listed: Array | None = None  # BN, where queries list their images: which images of all devices are in the list


class TrainState(struct.PyTreeNode):
  """Everything that a run needs to go on; a checkpoint is exactly this."""

  step: jax.Array
  params: dict
  opt_state: optax.OptState
  best_params: dict
  best_value: jax.Array  # validation mAP of best_params
  best_step: jax.Array


def first_state(params: dict, temperature: float, optimiser: optax.GradientTransformation) -> TrainState:
  """Returns the state before the first step. `params` are the form's; the temperature is trained beside them."""
  params = {"form": params, "log_temperature": jnp.log(jnp.asarray(temperature, jnp.float32))}
  return TrainState(
    step=jnp.asarray(0, jnp.int32),
    params=params,
    opt_state=optimiser.init(params),
    best_params=params,
    best_value=jnp.asarray(-jnp.inf, jnp.float32),
    best_step=jnp.asarray(0, jnp.int32),
  )


def make_optimiser(
  steps: int, learning_rate: float, end_learning_rate: float, warmup_steps: int, weight_decay: float, clip: float = 1.0
) -> optax.GradientTransformation:
  """Returns AdamW with warm-up (a quarter of the steps at most), cosine decay and clipping; matrices alone decay."""
  warmup = min(warmup_steps, steps // 4)
  schedule = optax.warmup_cosine_decay_schedule(0.0, learning_rate, warmup, steps, end_learning_rate)
  matrices = lambda params: jax.tree.map(lambda x: x.ndim >= 2, params)
  return optax.chain(optax.clip_by_global_norm(clip), optax.adamw(schedule, weight_decay=weight_decay, mask=matrices))


def make_step(
  module: nn.Module,
  constants: dict,
  optimiser: optax.GradientTransformation,
  settings: LossSettings,
  seed: int | jax.Array,
  axis: str,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict]]:
  """Returns the step that runs on each device of `axis`; all devices hold the same state before and after."""

  def loss_of(params: dict, batch: Batch, step: jax.Array) -> jax.Array:
    rows = jax.lax.axis_index(axis) * len(batch.instance) + jnp.arange(len(batch.instance))
    step_key = jax.random.fold_in(jax.random.key(seed), step)
    key_B3 = jax.vmap(lambda row: jax.random.split(jax.random.fold_in(step_key, row), 3))(rows)
    noisy = jax.vmap(lambda key, x: add_noise(key, x, settings.noise, settings.noise_scale))
    query_BD, image_BD = noisy(key_B3[:, 0], batch.query), noisy(key_B3[:, 1], batch.image)
    variables = {"params": params["form"], "constants": constants}

    def adapt(query_D: jax.Array, key: jax.Array) -> Any:
      return module.apply(variables, query_D[None], train=True, rngs={"dropout": key})

    adaptation = jax.tree.map(lambda x: x[:, 0], jax.vmap(adapt)(query_BD, key_B3[:, 2]))
    prepare = lambda x: module.apply(variables, x, method="prepare")
    gallery_ND = jax.lax.all_gather(prepare(image_BD), axis, tiled=True)
    instance_N, listed_QN = jax.lax.all_gather((batch.instance, batch.listed), axis, tiled=True)
    score_QN = jax.lax.all_gather(score(adaptation, gallery_ND), axis, tiled=True)
    temperature = jnp.maximum(jnp.exp(params["log_temperature"]), MIN_TEMPERATURE)
    if settings.semi_share == 0:
      return contrastive(score_QN, instance_N, temperature, listed_QN=listed_QN)
    semi_BMD = prepare(normalise(jnp.asarray(batch.semi)))
    own = lambda adaptation, semi_MD: score(jax.tree.map(lambda x: x[None], adaptation), semi_MD)[0]
    semi_QM = jax.lax.all_gather(jax.vmap(own)(adaptation, semi_BMD), axis, tiled=True)
    weight_QM = jax.lax.all_gather(batch.semi_weight, axis, tiled=True)
    return contrastive(score_QN, instance_N, temperature, semi_QM, weight_QM, settings.semi_share, listed_QN)

  def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict]:
    loss, gradient = jax.value_and_grad(loss_of)(state.params, batch, state.step)
    gradient = jax.lax.pmean(gradient, axis)
    updates, opt_state = optimiser.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    measures = {
      "loss": jax.lax.pmean(loss, axis),
      "gradient_norm": optax.tree.norm(gradient),
      "temperature": jnp.exp(params["log_temperature"]),
    }
    return state.replace(step=state.step + 1, params=params, opt_state=opt_state), measures

  return step
