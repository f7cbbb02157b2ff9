"""Why a result is where it is: plain and adapted score, rank before and after, and what moved the query."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from qat_jax.adaptation import fold, plain, unit
from qat_jax.adapter import Adapter
from qat_jax.models.memory import PAIRS
from qat_jax.search.rank import rank, rerank, score
from qat_jax.types import Adaptation, Gallery

REMEMBERED = 5  # pairs that are shown
COUNTED = 4_000_000  # items up to which ranks are counted among all; among more, within the first DEEP
DEEP = 1000


def scores_of(adaptation: Adaptation, gallery: Gallery, positions: np.ndarray) -> list[dict[str, Any]]:
  """Returns the score of items for one query, its numerator and the length |T z|, and the rank among all items.

  The rank is None where a gallery is so large that only the first thousand are looked at, and the item is not there.
  """
  ranking = rerank(adaptation, gallery, positions[None].astype(np.int64))
  score_of = dict(zip(ranking.ids[0].tolist(), ranking.scores[0].tolist(), strict=True))
  item_ND = np.asarray(gallery[positions], np.float32)
  numerator_N = item_ND @ np.asarray(fold(adaptation))[0]
  ranks = _ranks(adaptation, gallery, positions, score_of)
  found = []
  for row, position in enumerate(positions.tolist()):
    value, numerator = score_of[position], float(numerator_N[row])
    length = numerator / value if abs(value) > 1e-6 else None
    found.append({"score": value, "numerator": numerator, "length": length, "rank": ranks[position]})
  return found


def _ranks(
  adaptation: Adaptation, gallery: Gallery, positions: np.ndarray, score_of: dict[int, float]
) -> dict[int, int | None]:
  if len(gallery) > COUNTED:
    ids = rank(adaptation, gallery, DEEP).ids[0].tolist()
    return {p: ids.index(p) + 1 if p in ids else None for p in positions.tolist()}
  score_N = np.asarray(score(adaptation, gallery))[0]
  ranks: dict[int, int | None] = {}
  for p in positions.tolist():
    before_N = (score_N > score_N[p]) | ((score_N == score_N[p]) & (np.arange(len(score_N)) < p))
    ranks[p] = int(before_N.sum()) + 1
  return ranks


def moved(
  adapter: Adapter, query_type: str, query_D: np.ndarray, adaptation: Adaptation, frozen: Gallery
) -> dict[str, Any]:
  """Returns how a query moved: the cosine of before and after, and the training pairs that its head remembered.

  Of each pair the cosine of its query to this one, its share of the softmax, and the position of the gallery item that
  is most like its image. `remembered` is empty where the head has no memory.
  """
  after_D, head = np.asarray(adaptation.query)[0], adapter.heads[query_type]
  same = len(after_D) == len(query_D) and "projected" not in (head.form, head.settings.get("form"))  # same dimensions
  found: dict[str, Any] = {"cosine": float(unit(query_D) @ unit(after_D)) if same else None, "remembered": []}
  bank = _bank(head.variables)
  if bank is None:
    return found
  query_MD, image_MD, temperature = bank
  cosine_M = query_MD.astype(np.float32) @ unit(query_D, np.float32)
  share_M = np.exp((cosine_M - cosine_M.max()) / temperature)
  share_M /= share_M.sum()
  best = np.argsort(-share_M, kind="stable")[:REMEMBERED]
  like = rank(plain(jax.numpy.asarray(image_MD[best], jax.numpy.float32)), frozen, 1).ids[:, 0]
  for pair, item in zip(best.tolist(), like.tolist(), strict=True):
    entry = {"cosine": float(cosine_M[pair]), "share": float(share_M[pair]), "position": item}
    found["remembered"].append({"query": query_MD[pair], **entry})
  found["pairs"] = len(query_MD)
  return found


def _bank(variables: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, float] | None:
  """Returns the remembered queries and images of a head (two MD) and its temperature, wherever its form keeps them."""
  constants = variables.get("constants", {})
  while not {*PAIRS, "temperature"} <= constants.keys():
    if "head" not in constants:
      return None
    constants = constants["head"]  # of the form that this one adds to
  query_MD, image_MD = (np.asarray(constants[name]) for name in PAIRS)
  return query_MD, image_MD, float(constants["temperature"])
