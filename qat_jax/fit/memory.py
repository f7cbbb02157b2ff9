"""Heads that remember training pairs: the neighbour residual alone, and beside another head.

A query moves as training queries like it would have to, to reach their images. It costs O(M·D) for M pairs, a gallery
item nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from qat_jax.fit.training import Training
from qat_jax.models.head import Head
from qat_jax.models.memory import Bank, image_bank, text_bank
from qat_jax.validation import Validator

TEMPERATURE, SCALE, WEIGHT = (0.01, 0.02, 0.035, 0.05, 0.1), (0.5, 1.0, 1.5), (0.25, 0.5, 1.0)
ALONE = (0.25, 0.5, 1.0, 1.5)  # scales
FEW = 400  # validation queries that choose the numbers of a memory beside another head


def neighbours(training: Training, validator: Validator) -> Head | None:
  """Returns the neighbour residual of all training pairs, its temperature and scale the best on validation.

  None for text queries without captions, and for image queries where no instance has two images.
  """
  if training.query_type == "image":
    bank = image_bank(training.images, training.instance)
  else:
    bank = None if training.queries is None else text_bank(training.queries, training.images)
  if bank is None:
    return None
  pairs = {"queries": bank.query_MD, "images": bank.image_MD}

  def heads() -> Iterator[Head]:
    for temperature, scale in itertools.product(TEMPERATURE, ALONE):
      constants = pairs | {"temperature": jnp.float32(temperature), "scale": jnp.float32(scale)}
      note = f"temperature {temperature}, scale {scale}; keeps {len(bank.query_MD):,} training pairs"
      yield Head("neighbours", {"pairs": len(bank.query_MD)}, {"params": {}, "constants": constants}, note)

  return max(heads(), key=validator)


def remembering(training: Training, validator: Validator, head: Head, most: int) -> Head:
  """Returns another head with up to `most` training pairs that it remembers: a sample where there are more.

  Temperature, scale and weight are the best on validation. Image queries want instances of several images.
  """
  bank: Bank | None
  if training.query_type == "text":
    assert training.queries is not None, "text queries without captions have no pairs"
    rows = np.linspace(0, len(training.instance) - 1, min(len(training.instance), most)).astype(int)
    bank = text_bank(training.queries[rows], training.images[rows])
  else:
    rows = with_second_views(training.instance, most)
    bank = image_bank(training.images[rows], training.instance[rows])
  assert bank is not None, "no instance has two images"
  settings = {"form": head.form, "settings": head.settings, "pairs": len(bank.query_MD)}
  pairs = {"queries": bank.query_MD.astype(jnp.float16), "images": bank.image_MD.astype(jnp.float16)}
  inner = {name: {"head": tree} if tree else {} for name, tree in head.variables.items()}

  def heads() -> Iterator[Head]:
    for numbers in itertools.product(TEMPERATURE, SCALE, WEIGHT):
      constants = {n: jnp.float32(x) for n, x in zip(("temperature", "scale", "weight"), numbers, strict=True)}
      yield Head("remembering", settings, inner | {"constants": inner["constants"] | pairs | constants})

  return max(heads(), key=validator.subset(FEW))


def with_second_views(instance_N: np.ndarray, most: int) -> np.ndarray:
  """Returns up to `most` rows whose instance has several, instance by instance, in random order."""
  _, code_N, count = np.unique(instance_N, return_inverse=True, return_counts=True)
  rows = np.flatnonzero(count[code_N] >= 2)
  place_N = np.random.default_rng(0).permutation(len(count))[code_N]
  return rows[np.argsort(place_N[rows], kind="stable")][:most]
