"""Linear adaptation as ILIAS trains it: one layer for queries and gallery, from a cosine classifier over instances.

Trained on images; a text query enters at the images' mean, shifted by what the means of captions and images differ (the
modality gap). A step costs O(B·C·E) for a batch of B and C training instances; the classifier is thrown away. Offline
O(N·D·E) for N items, online one D×E product a query. `without` trains nothing: its map is made of words.
"""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax

from qat_jax.adaptation import normalise
from qat_jax.fit.training import Training
from qat_jax.models.closed_forms import affine_variables
from qat_jax.models.head import Head
from qat_jax.validation import Validator
from qat_jax.words import Maps, directions

WIDTH = 512
SCALE = 16.0
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 1e-6  # added to the gradient, as L2: ILIAS' own recipe, not that of train/
BATCH = 128
READ = 512  # batches whose images are read at once
EPOCHS = 20
PATIENCE = 2  # epochs without a better validation, then it stops
SEED = 0

OPTIMISER = optax.chain(optax.add_decayed_weights(WEIGHT_DECAY), optax.adam(LEARNING_RATE))


def fit_linear(training: Training, validator: Validator) -> Head | None:
  """Returns the layer of the epoch that does best on validation; None where all images are of one instance.

  Images are read READ batches at a time; the classifier, 2 kB an instance, is held whole.
  """
  instances, code_N = np.unique(training.instance, return_inverse=True)
  if len(instances) < 2:
    return None
  query_D, image_D = training.means()
  key = jax.random.key(SEED)
  params = first_parameters(jax.random.fold_in(key, 0), training.width, len(instances))
  state = OPTIMISER.init(params)
  best_value, best_epoch, best = -1.0, 0, None
  for epoch in range(1, EPOCHS + 1):
    rows_SB = np.asarray(batches(jax.random.fold_in(key, epoch), len(code_N)))
    for begun in range(0, len(rows_SB), READ):
      some_SB = rows_SB[begun : begun + READ]
      image_MD = normalise(jnp.asarray(training.images[some_SB.reshape(-1)]))
      label_M = jnp.asarray(code_N[some_SB.reshape(-1)], jnp.int32)
      params, state, _ = train_epoch(params, state, image_MD, label_M, jnp.arange(some_SB.size).reshape(some_SB.shape))
    note = f"{epoch} epochs over {len(instances):,} instances"
    head = layer_head(jax.device_get(params), query_D - image_D, note)
    value = validator(head)
    if value > best_value:
      best_value, best_epoch, best = value, epoch, head
    elif epoch - best_epoch >= PATIENCE:
      break
  return best


def layer_head(params: dict, shift_D: np.ndarray, note: str = "") -> Head:
  """Returns the head that applies a layer, {kernel: DE, bias: E}, to both sides; queries lose the shift first."""
  variables = affine_variables(shift_D, np.zeros_like(shift_D), params["kernel"], params["bias"])
  return Head("affine", {"dimensions": params["kernel"].shape[1], "bias": True}, variables, note)


def without(aspects: Mapping[str, np.ndarray]) -> Head:
  """Returns the head that leaves aspects out of queries and items alike: normalise(x (I − V Vᵀ)).

  V are the directions that `qat_jax.words` ignores: those that the aspects' rows of text features (WD) vary along.
  """
  told = [directions(row_WD, name) for name, row_WD in aspects.items()]
  width = len(told[0].mean_D)
  zero_D, map_DD = np.zeros(width), Maps(width).of([], told)(np.eye(width))
  return Head("affine", {"dimensions": width}, affine_variables(zero_D, zero_D, map_DD), f"off {', '.join(aspects)}")


def first_parameters(key: jax.Array, width: int, instances: int) -> dict:
  """Returns the first parameters: kernel DE and bias E uniform within ±1/√D, classes CE normal."""
  keys, bound = jax.random.split(key, 3), width**-0.5
  return {
    "kernel": jax.random.uniform(keys[0], (width, WIDTH), minval=-bound, maxval=bound),
    "bias": jax.random.uniform(keys[1], (WIDTH,), minval=-bound, maxval=bound),
    "classes": jax.random.normal(keys[2], (instances, WIDTH)) * WIDTH**-0.5,
  }


def batches(key: jax.Array, items: int) -> jax.Array:
  """Returns an epoch's rows in random order, S batches (SB); what is left over waits for the next epoch."""
  size = min(BATCH, items)
  return jax.random.permutation(key, items)[: items // size * size].reshape(-1, size)


@functools.partial(jax.jit, donate_argnums=(0, 1))
def train_epoch(
  params: dict, state: optax.OptState, image_ND: jax.Array, label_N: jax.Array, rows_SB: jax.Array
) -> tuple[dict, optax.OptState, jax.Array]:
  """Returns the parameters and the optimiser's state after the batches, and each batch's loss (S)."""

  def step(carry: tuple[dict, optax.OptState], rows_B: jax.Array) -> tuple[tuple[dict, optax.OptState], jax.Array]:
    params, state = carry
    value, gradient = jax.value_and_grad(loss)(params, image_ND[rows_B], label_N[rows_B])
    update, state = OPTIMISER.update(gradient, state, params)
    return (optax.apply_updates(params, update), state), value

  (params, state), loss_S = jax.lax.scan(step, (params, state), rows_SB)
  return params, state, loss_S


def loss(params: dict, image_BD: jax.Array, label_B: jax.Array) -> jax.Array:
  """Returns the mean cross-entropy of softmax(scale · cosine(layer(image), class)) over the batch."""
  mapped_BE = normalise(image_BD @ params["kernel"] + params["bias"][None])
  logit_BC = SCALE * mapped_BE @ normalise(params["classes"]).T
  return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logit_BC, label_B))
