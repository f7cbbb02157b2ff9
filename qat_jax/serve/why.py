"""Why a result is where it is: plain and adapted score, rank before and after, and what moved the query."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from qat_jax.adaptation import fold, plain, unit
from qat_jax.adapter import Adapter
from qat_jax.models.head import Head
from qat_jax.models.memory import PAIRS
from qat_jax.search.rank import rank, score
from qat_jax.serve.limits import Refused
from qat_jax.serve.planning import Planner
from qat_jax.serve.ranking import Ranker
from qat_jax.serve.searches import Found, Search
from qat_jax.serve.summands import Summand, mean_of
from qat_jax.types import Adaptation, Gallery, Pieces

REMEMBERED = 5  # pairs that are shown
COUNTED = 4_000_000  # items × terms up to which ranks are counted among all; beyond, within the first DEEP
DEEP = 1000


def scores_of(terms: Sequence[Summand], ranker: Ranker, positions: np.ndarray) -> list[dict[str, Any]]:
  """Returns the score of items for one query, and the rank among all items.

  Of a query of one term also the numerator and the length |T z|. The rank is None where a gallery is so large that only
  the first thousand are looked at, and the item is not there.
  """
  score_P = mean_of(terms, ranker.scores([(term, positions) for term in terms]))
  places = _ranks(terms, ranker, positions)
  items: list[dict[str, Any]] = [
    {"score": float(value), "rank": place} for value, place in zip(score_P, places, strict=True)
  ]
  if len(terms) == 1:
    item_PD = np.asarray(ranker.galleries[terms[0].gallery][positions], np.float32)
    numerator_P = item_PD @ np.asarray(fold(terms[0].adaptation))[0]
    for item, numerator in zip(items, numerator_P.tolist(), strict=True):
      item |= {"numerator": numerator, "length": numerator / item["score"] if abs(item["score"]) > 1e-6 else None}
  return items


def parts_of(
  planner: Planner, ranker: Ranker, job: Search, found: Found, positions: np.ndarray
) -> list[list[dict[str, Any]]]:
  """Returns for each item what each part of the query, each mark and each aspect adds to its adapted score.

  Parts and marks add up to the score. An aspect's part is the score less what it would be without the aspect.
  """
  total = sum(term.weight for term in found.terms["adapted"])
  shares: list[tuple[dict[str, Any], np.ndarray]] = []
  singles = [part for part in job.parts if part.mark or not (job.words.change or job.words.guess)]
  jobs = [
    Search((dataclasses.replace(part, mark=False),), query_type=None if part.mark else job.query_type, words=job.words)
    for part in singles
  ]
  for name in job.words.names:
    jobs.append(dataclasses.replace(job, words=job.words.without(name), mode="both"))
  planned = planner.features(jobs)
  planner.plan(jobs, planned)
  for part, one in zip(singles, planned, strict=False):
    if isinstance(one, Found) and "adapted" in one.terms:
      about: dict[str, Any] = {"of": "mark" if part.mark else part.kind}
      about |= {} if part.position is None else {"item": part.position}
      terms = one.terms["adapted"]
      if found.mixed:
        even = [planner.as_plain(term, one.feature) for term in terms]
        terms = [dataclasses.replace(term, weight=abs(part.weight) * term.weight) for term in even]
      scores = mean_of(terms, ranker.scores([(term, positions) for term in terms]))
      shares.append((about, sum(term.weight for term in terms) / total * scores))
  whole = mean_of(found.terms["adapted"], ranker.scores([(term, positions) for term in found.terms["adapted"]]))
  for name, one in zip(job.words.names, planned[len(singles) :], strict=True):
    if isinstance(one, Found):
      terms = one.terms["adapted" if job.words.without(name) else "plain"]
      without = mean_of(terms, ranker.scores([(term, positions) for term in terms]))
      shares.append(({"of": "aspect", "name": name}, whole - without))
  return [[{**about, "score": float(share[i])} for about, share in shares] for i in range(len(positions))]


def _ranks(terms: Sequence[Summand], ranker: Ranker, positions: np.ndarray) -> list[int | None]:
  items = len(ranker.galleries["frozen"])
  if items * len(terms) > COUNTED:
    (ranked,) = ranker.rank([Search((), k=DEEP)], [list(terms)])
    ids = [] if isinstance(ranked, Refused) else ranked[0].ids.tolist()
    return [ids.index(p) + 1 if p in ids else None for p in positions.tolist()]
  score_N = mean_of(terms, [np.asarray(score(one.adaptation, ranker.galleries[one.gallery]))[0] for one in terms])
  frozen = ranker.galleries["frozen"]
  if isinstance(frozen, Pieces):
    score_N[~np.concatenate(frozen.alive)] = -np.inf
  before = lambda p: (score_N > score_N[p]) | ((score_N == score_N[p]) & (np.arange(items) < p))
  return [int(before(p).sum()) + 1 for p in positions.tolist()]


def moved(
  adapter: Adapter, query_type: str, query_D: np.ndarray, adaptation: Adaptation, frozen: Gallery
) -> dict[str, Any]:
  """Returns how a query moved: the cosine of before and after, its expert, and what its head remembered.

  The expert, None where the head has none: its number, of how many, the query's cosine with the mean of its training
  images, and the position of the gallery item that is most like that mean (None where a map comes first). Of each pair
  the cosine of its query to this one, its share of the softmax, and the position of the gallery item that is most like
  its image. `remembered` is empty where the head has no memory.
  """
  after_D, head = np.asarray(adaptation.query)[0], adapter.heads[query_type]
  same = len(after_D) == len(query_D) and "projected" not in (head.form, head.settings.get("form"))  # same dimensions
  found: dict[str, Any] = {"cosine": float(unit(query_D) @ unit(after_D)) if same else None, "remembered": []}
  found["expert"] = _expert(head, query_D, frozen)
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


def _expert(head: Head, query_D: np.ndarray, frozen: Gallery) -> dict[str, Any] | None:
  """Returns which expert serves a query, as `moved` has it."""
  if (experts := head.inside("experts")) is None:
    return None
  module, variables = experts.module(len(query_D)), jax.tree.map(jax.numpy.asarray, experts.variables)
  (expert,), (cosine,) = module.apply(variables, jax.numpy.asarray(query_D[None]), method="expert")
  position, mean_KD = None, variables["constants"]["query_mean"]
  if experts.settings["form"] == "plain":
    position = int(rank(plain(mean_KD[int(expert)][None]), frozen, 1).ids[0, 0])
  return {"number": int(expert), "of": len(mean_KD), "cosine": float(cosine), "position": position}


def _bank(variables: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, float] | None:
  """Returns the remembered queries and images of a head (two MD) and its temperature, wherever its form keeps them."""
  constants = variables.get("constants", {})
  while not {*PAIRS, "temperature"} <= constants.keys():
    if "head" not in constants:
      return None
    constants = constants["head"]  # of the form that this one adds to
  query_MD, image_MD = (np.asarray(constants[name]) for name in PAIRS)
  return query_MD, image_MD, float(constants["temperature"])
