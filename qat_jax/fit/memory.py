"""Heads that remember training pairs: the neighbour residual alone, and beside another head; captions of the items.

A query moves as training queries like it would have to, to reach their images; an item is called what training images
like it are called. Each costs O(M·D) for M pairs, an item offline.
"""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qat_jax.fit.parts import beside
from qat_jax.fit.training import Training, evenly, mean_of_rows
from qat_jax.models.head import Head
from qat_jax.models.memory import PAIRS, Bank, image_bank, text_bank
from qat_jax.types import Adaptation
from qat_jax.validation import Validator

TEMPERATURE, SCALE, WEIGHT = (0.01, 0.02, 0.035, 0.05, 0.1), (0.5, 1.0, 1.5), (0.25, 0.5, 1.0)
ALONE = (0.25, 0.5, 1.0, 1.5)  # scales
MOST = 1 << 18  # pairs of a memory alone: half a gigabyte at 256 wide
ITEM_TEMPERATURE, SHARE = (0.01, 0.02, 0.035, 0.05, 0.1), (0.02, 0.05, 0.1, 0.2, 0.4)
REMEMBERING = {"temperature": TEMPERATURE, "scale": SCALE, "weight": WEIGHT}  # what is tried
CAPTIONED = {"temperature": ITEM_TEMPERATURE, "share": SHARE}
BLOCK = 1024  # rows made into items at once
SAMPLE = 8192  # training images whose items say along which directions items lie
FEW = 400  # validation queries that choose the numbers of a memory beside another head


def neighbours(training: Training, validator: Validator, most: int = MOST) -> Head | None:
  """Returns the neighbour residual of all training pairs, its temperature and scale the best on validation.

  Of more than `most` pairs it keeps a sample. None for text queries without captions, and for image queries where no
  instance has two images.
  """
  if training.queries is None or (training.query_type == "image" and not training.second_views):
    return None
  bank = bank_of(training, most)
  pairs = {"queries": bank.query_MD, "images": bank.image_MD}

  def made(temperature: float, scale: float) -> Head:
    constants = pairs | _numbers({"temperature": temperature, "scale": scale})
    note = f"temperature {temperature}, scale {scale}; keeps {len(bank.query_MD):,} training pairs"
    return Head("neighbours", {"pairs": len(bank.query_MD)}, {"params": {}, "constants": constants}, note)

  return max(itertools.starmap(made, itertools.product(TEMPERATURE, ALONE)), key=validator)


def fit_memory(training: Training, validator: Validator, head: Head, most: int) -> Head:
  """Returns another head with up to `most` training pairs that it remembers: a sample where there are more.

  Temperature and scale are the best on a few validation queries, then the weight on all of them.
  Image queries want instances of several images. Raises ValueError where `can_remember` says no.
  """
  if not can_remember(training, head):
    raise ValueError(
      f"{training.query_type} queries of the form {head.form} cannot remember pairs: that takes captions or instances "
      f"of several images, and items as wide as the features, {training.width}; "
      f"they are {head.items_wide(training.width)}"
    )
  bank = bank_of(training, most)
  settings = {"form": head.form, "settings": head.settings, "pairs": len(bank.query_MD)}

  pairs = halves(bank)

  def moving(temperature: float, scale: float, weight: float) -> Head:
    numbers = {"temperature": temperature, "scale": scale, "weight": weight}
    note = f"memory of {len(bank.query_MD):,} pairs, temperature {temperature}, scale {scale}, weight {weight}"
    return Head("remembering", settings, beside(head, pairs | _numbers(numbers)), note)

  few, middle = validator.subset(FEW), WEIGHT[len(WEIGHT) // 2]
  pairs_of_numbers = itertools.product(TEMPERATURE, SCALE)
  temperature, scale = max(pairs_of_numbers, key=lambda both: few(moving(both[0], both[1], middle)))
  return max((moving(temperature, scale, weight) for weight in WEIGHT), key=validator)


def captioned(training: Training, validator: Validator, head: Head, texts: Any, most: int, narrow: int = 0) -> Head:
  """Returns a head whose items also carry their captions: what training images like them are called.

  `texts` are the captions of the training images, of which up to `most` are kept; a text head that remembers pairs uses
  those. The temperature is the best on validation, the captions' share of the score the mildest that holds there.
  With `narrow` the items come out so wide (`projected`).
  """
  if head.form == "remembering" and training.query_type == "text":
    settings, variables = head.settings, head.variables
    own = variables["constants"]
  else:
    rows = evenly(len(training.instance), most)
    settings = {"form": head.form, "settings": head.settings, "pairs": len(rows), "moves": False}
    own = halves(text_bank(texts[rows], training.images[rows]))
    variables = beside(head, own)
  settings = settings | {"captions": training.query_type}
  mean_D = jnp.asarray(mean_of_rows(own["queries"]), jnp.float32)

  def with_numbers(temperature: float, share: float) -> Head:
    numbers = _numbers({"item_temperature": temperature, "share": share}) | {"mean": mean_D}
    note = f"captions of {settings['pairs']:,} pairs, temperature {temperature}, share {share}"
    return Head("remembering", settings, variables | {"constants": variables["constants"] | numbers}, note)

  few = validator.subset(FEW)
  best = max(ITEM_TEMPERATURE, key=lambda number: few(with_numbers(number, SHARE[-1])))
  wide = validator.mildest(with_numbers(best, share) for share in SHARE)
  return fit_projection(training, wide, narrow) if narrow else wide


def fit_projection(training: Training, head: Head, narrow: int) -> Head:
  """Returns a head whose items are `narrow` wide: its own, projected on the directions along which they have most.

  Those are the principal ones, not centred, of up to SAMPLE training images' items. Raises ValueError where `narrow` is
  more than the items have.
  """
  items = head.items_wide(training.width)
  if not 2 <= narrow <= items:
    raise ValueError(f"items {items} wide cannot be projected to {narrow}; give a width of 2 to {items}")
  rows, moment_FF = evenly(len(training.instance), SAMPLE), np.zeros((items, items))
  for start in range(0, len(rows), BLOCK):
    image_BD = np.asarray(training.images[rows[start : start + BLOCK]], np.float32)
    item_BF = np.asarray(head.prepare(image_BD), np.float64)
    moment_FF += item_BF.T @ item_BF
  along_EF = np.linalg.eigh(moment_FF)[1].T[::-1][:narrow]
  constants = {"directions": jnp.asarray(along_EF, jnp.float32)}
  settings = {"form": head.form, "settings": head.settings, "items": items, "narrow": narrow}
  return Head("projected", settings, beside(head, constants), f"{head.note}; items projected to {narrow} numbers")


def halves(bank: Bank) -> dict[str, jax.Array]:
  """Returns the constants of a form that hold a bank, in half precision."""
  return {name: half.astype(jnp.float16) for name, half in zip(PAIRS, bank, strict=True)}


def can_remember(training: Training, head: Head) -> bool:
  """Says whether pairs can move a head's query: there are some, and what it moves is as wide as they are.

  A query with a list of relevant rows has no single partner, so lists give no pairs.
  """
  paired = training.queries is not None and training.relevant is None
  pairs = paired and (training.query_type == "text" or training.second_views > 0)
  return pairs and head.items_wide(training.width) == training.width


def can_be_captioned(training: Training, head: Head, narrow: int = 0) -> bool:
  """Says whether captions fit beside a head: its T must leave other dimensions as they are, so one gate must be 1.

  Where items are projected, to be `narrow` wide, a gate for each dimension has none to work on.
  """
  sample_QD = jnp.asarray(np.asarray(training.images[:4], np.float32))
  adaptation = head.module(training.width).apply(head.variables, sample_QD)
  assert isinstance(adaptation, Adaptation)
  if adaptation.gate.shape[1] > 1:
    return not narrow
  return bool(jnp.all(adaptation.gate == 1))


def _numbers(named: dict[str, float]) -> dict[str, jax.Array]:
  return {name: jnp.float32(number) for name, number in named.items()}


def bank_of(training: Training, most: int) -> Bank:
  """Returns the pairs that a memory of up to `most` keeps; no other features are read.

  Image queries want an instance with two images, text queries captions.
  """
  rows = pairs_kept(training, most)
  if training.query_type == "text":
    assert training.queries is not None
    return text_bank(training.queries[rows], training.images[rows])
  bank = image_bank(training.images[rows], training.instance[rows])
  assert bank is not None, "no instance has two images"
  return bank


def pairs_kept(training: Training, most: int) -> np.ndarray:
  """Returns the training rows that a memory of up to `most` pairs keeps, in its order."""
  if training.query_type == "text":
    return evenly(len(training.instance), most)
  rows = with_second_views(training.instance, most)
  _, code_N, count = np.unique(training.instance[rows], return_inverse=True, return_counts=True)
  return rows[count[code_N] >= 2]


def with_second_views(instance_N: np.ndarray, most: int) -> np.ndarray:
  """Returns up to `most` rows whose instance has several, instance by instance, in random order."""
  _, code_N, count = np.unique(instance_N, return_inverse=True, return_counts=True)
  rows = np.flatnonzero(count[code_N] >= 2)
  place_N = np.random.default_rng(0).permutation(len(count))[code_N]
  return rows[np.argsort(place_N[rows], kind="stable")][:most]
