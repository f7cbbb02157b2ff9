"""Heads whose items are levelled against hubs: fitted with training queries, each served as it would be.

Nearest-neighbour normalisation beside any head, and its relatives for the plain features, which the field knows as
CSLS and inverted softmax.
"""

from collections.abc import Iterator, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from qat_jax.adaptation import HIGHEST, TINY, fold, score
from qat_jax.fit.memory import pairs_kept
from qat_jax.fit.parts import beside
from qat_jax.fit.training import PLAIN, Training, evenly
from qat_jax.models.head import Head
from qat_jax.models.levels import level_of
from qat_jax.types import Adaptation
from qat_jax.validation import Validator

WEIGHT, NEAREST = (0.25, 0.5, 0.75), 16
SHARPNESS = (10.0, 20.0, 50.0, 100.0, 200.0)
NEIGHBOURS = (1, 4, 10, 16, 64, 256)
LEVELLED = {"weight": WEIGHT, "nearest": NEAREST}  # what is tried
QUERIES = 8000
BLOCK = 1024  # queries served at once
FEW_ITEMS = 64  # training images on which a map's length is taken
CENTRE_ROWS = 8192  # training images whose mean level is the centre


def fit_levels(training: Training, validator: Validator, head: Head, queries: int = QUERIES) -> Head:
  """Returns a head, its items levelled by up to `queries` training queries; the weight is the best on validation."""
  folded_ME = served(training, head, queries)
  return max(_heads(training, head, folded_ME, [(NEAREST, 0.0, weight) for weight in WEIGHT]), key=validator)


def csls(training: Training, validator: Validator) -> Head | None:
  """Returns the plain head less half the mean score of an item's nearest training queries, their number tuned."""
  return _best(training, validator, [(nearest, 0.0, 0.5) for nearest in NEIGHBOURS])


def inverted_softmax(training: Training, validator: Validator) -> Head | None:
  """Returns the plain head with scores normalised over training queries by a softmax, its sharpness tuned."""
  return _best(training, validator, [(0, sharpness, 1.0) for sharpness in SHARPNESS])


def nearest_neighbour_normalisation(training: Training, validator: Validator) -> Head | None:
  """Returns the plain head, levelled: how much, and by how many neighbours, the best on validation."""
  return _best(training, validator, [(n, 0.0, weight) for n in NEIGHBOURS for weight in (*WEIGHT, 1.0)])


def served(training: Training, head: Head, queries: int) -> np.ndarray:
  """Returns up to `queries` training queries as the head would serve them, folded (ME, float16).

  Their inner products with items are about the scores: where a map makes items longer or shorter, each is scaled by how
  much on a few training images. A memory hides from each query what it keeps of its own instance.
  """
  _, code_N = np.unique(training.instance, return_inverse=True)
  if code_N.max() == 0:
    raise ValueError("all training rows are of one instance; levelling needs queries of several")
  assert training.queries is not None, "text queries without captions cannot be served"
  code_Q = code_N if training.relevant is None else np.full(len(training.queries), -1)  # −1: of no image's instance
  rows = evenly(len(code_Q), queries)
  module, few_NE, folded = head.module(training.width), _items(training, head, FEW_ITEMS), []

  @jax.jit
  def serve(variables: dict, query_BD: jax.Array) -> jax.Array:
    adaptation = cast(Adaptation, module.apply(variables, query_BD))
    folded_BE, score_BN = fold(adaptation), score(adaptation, few_NE)
    product_BN = jnp.matmul(folded_BE, few_NE.T, precision=HIGHEST)
    length_B1 = jnp.linalg.norm(product_BN, axis=1, keepdims=True)
    return folded_BE * jnp.linalg.norm(score_BN, axis=1, keepdims=True) / jnp.maximum(length_B1, TINY)

  for start in range(0, len(rows), BLOCK):
    block = rows[start : start + BLOCK]
    hidden = _instances(training, head, code_N, code_Q[block])
    query_BD = jnp.asarray(np.asarray(training.queries[block], np.float32))
    folded.append(np.asarray(serve(head.variables | {"instances": hidden}, query_BD), np.float16))
  return np.concatenate(folded)


def _items(training: Training, head: Head, most: int) -> jax.Array:
  """Returns up to so many training images as the head's items (NE)."""
  return head.prepare(np.asarray(training.images[evenly(len(training.instance), most)], np.float32))


def _instances(training: Training, head: Head, code_N: np.ndarray, query_Q: np.ndarray) -> dict[str, Any]:
  """Returns the collection that hides from the queries what the memories of a head keep of their instances."""
  settings = head.settings
  if "form" not in settings:
    return {}
  inner = _instances(training, Head(settings["form"], settings["settings"], {}), code_N, query_Q)
  around = {"head": inner} if inner else {}
  if head.form != "remembering":
    return around
  moves = settings.get("moves", True)
  rows = pairs_kept(training, settings["pairs"]) if moves else evenly(len(code_N), settings["pairs"])
  assert len(rows) == settings["pairs"], "the memory was made from other training features"
  return {"pairs": code_N[rows], "queries": query_Q} | around


def _best(training: Training, validator: Validator, ways: Sequence[tuple[int, float, float]]) -> Head | None:
  if training.queries is None:
    return None
  return max(_heads(training, PLAIN, served(training, PLAIN, QUERIES), ways), key=validator)


def _heads(
  training: Training, head: Head, folded_ME: np.ndarray, ways: Sequence[tuple[int, float, float]]
) -> Iterator[Head]:
  """Yields a levelled head for each (nearest, sharpness, weight)."""
  size, width = folded_ME.shape
  item_NE = _items(training, head, CENTRE_ROWS)
  level = jax.jit(level_of, static_argnums=(2, 3))
  for nearest, sharpness, weight in ways:
    centre = level(jnp.asarray(folded_ME), item_NE, nearest, sharpness).mean()
    constants = {"folded": jnp.asarray(folded_ME), "weight": jnp.float32(weight), "centre": centre}
    settings = {"form": head.form, "settings": head.settings, "queries": size, "items": width}
    kind = {"nearest": nearest} | ({"sharpness": sharpness} if sharpness else {})
    by = f"{nearest} nearest" if nearest else f"sharpness {sharpness}"
    note = f"levelled by {size:,} training queries, {by}, weight {weight}"
    yield Head("levelled", settings | kind, beside(head, constants), note)
