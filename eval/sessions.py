"""Sessions with marks: a simulated person looks at a page, marks what is right, and asks for the next page.

    python -m eval.sessions --workdir RUN [--root SET] [--split val] [--rounds 2] [--flip 0.1] [--out FOLDER]

Residual collection: all that was shown is taken out of the gallery for every method, and what counts is the average
precision of the rest. Each method shows its own pages, but for the first, which is the same for all. Figures are means
× 100 over queries with something right on the first page and after it. `--flip` is how often the person is wrong about
an item that is shown: a mark is then the other one. Beside ours are Rocchio's formula and those of Qdrant's
recommendations.

For image queries, also what two and three pictures of one thing find: the query's and some from the gallery, which are
taken out of it for any number of pictures.
"""

import collections
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

import qat_jax
from eval import commands
from qat_jax import marks
from qat_jax.adaptation import unit
from qat_jax.adapter import Adapter
from qat_jax.features.retrieval_set import RetrievalSet, Split
from qat_jax.metrics import average_precision_of_scores, paired_interval
from qat_jax.types import Relevance

ROCCHIO = tuple(itertools.product((0.25, 0.5, 1.0, 2.0), (0.0, 0.25)))  # weights of the right and of the wrong
BASE = "next page, no marks"
PICTURES = 3  # of one thing, at most


class Marks(NamedTuple):
  """What one person has marked so far: gallery positions."""

  right: list[int]
  wrong: list[int]


class SessionQueries(NamedTuple):
  """Queries of one type, and all that scores them."""

  query_QD: np.ndarray  # unit, frozen
  gallery_ND: np.ndarray  # unit, frozen
  served_QN: np.ndarray  # the scores of the served head
  like: Callable[[list[int]], np.ndarray]  # items → the scores of each as an image query (MN), through the image head


Method = Callable[[SessionQueries, int, Marks], np.ndarray]  # the scores of one query after its marks (N)


def main(arguments: Sequence[str] | None = None) -> None:
  """Parses the flags, prints a line for each query type, round and method, and writes the curves."""
  parser = commands.parser("eval.sessions", __doc__, "--workdir", "--split")
  parser.add_argument("--root", type=Path, help="the retrieval set; by default the run's own features")
  parser.add_argument("--rounds", type=int, default=1, help="pages that are marked, one after the other")
  parser.add_argument("--page", type=int, default=10, help="items of a page")
  parser.add_argument("--flip", type=float, default=0.0, help="the share of marks that are wrong")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--out", type=Path, help="a folder for sessions.json and sessions.png")
  with commands.started(parser, arguments) as flags:
    if flags.rounds < 1 or flags.page < 1 or not 0 <= flags.flip < 1:
      raise ValueError("--rounds and --page must be at least 1, --flip at least 0 and below 1")
    adapter = qat_jax.load(flags.workdir)
    split = RetrievalSet.open(flags.root or flags.workdir / "features").split(flags.split)
    curves = {}
    for query_type in [name for name in split.queries if name in adapter.heads]:
      found = sessions(adapter, split, query_type, flags.rounds, flags.page, flags.flip, flags.seed)
      curves[query_type] = {name: [100 * float(np.mean(one)) for one in rounds] for name, rounds in found.items()}
      print("\n".join(lines(query_type, found)))
      if query_type == "image":
        for name, rounds in several_pictures(adapter, split, flags.seed).items():
          means = ", ".join(f"{100 * np.mean(one):.1f}" for one in rounds)
          print(f"one, two and three pictures ({len(rounds[0]):,} queries), {name}: {means}")
    if flags.out:
      flags.out.mkdir(parents=True, exist_ok=True)
      commands.write_figures(flags.out / "sessions.json", curves)
      draw_curves(curves, flags.out / "sessions.png")


def sessions(
  adapter: Adapter, split: Split, query_type: str, rounds: int, page: int, flip: float, seed: int
) -> dict[str, list[np.ndarray]]:
  """Returns the average precision of what is left after each round (Q), by method.

  Args:
    adapter: serves both the queries and the marks.
    split: queries, gallery and what is right.
    query_type: which queries.
    rounds: how many pages are marked.
    page: items of a page.
    flip: how often a mark is the other one.
    seed: draws the flips.
  """
  collection, relevance = session_queries(adapter, split, query_type), split.relevance(query_type)
  right_QN = np.zeros(collection.served_QN.shape, bool)
  for row_N, positives in zip(right_QN, relevance.positives, strict=True):
    row_N[positives] = True
  hidden_QN = np.zeros_like(right_QN)
  for row_N, ignored in zip(hidden_QN, relevance.ignored, strict=True):
    row_N[ignored] = True
  flips_QN = np.random.default_rng(seed).random(right_QN.shape) < flip
  first_QP = shown(collection.served_QN, hidden_QN, page)
  marked_QP = np.take_along_axis(right_QN, first_QP, axis=1)  # flips left out: all shares have the same queries
  rest_QN = right_QN & ~hidden_QN
  np.put_along_axis(rest_QN, first_QP, False, axis=1)
  queries = np.flatnonzero(marked_QP.any(axis=1) & rest_QN.any(axis=1))
  if not len(queries):
    raise ValueError(f"no {query_type} query has a right mark and something right left; show a larger --page")
  results: dict[str, list[np.ndarray]] = {}
  for name, method in methods().items():
    seen_QN, precision_TQ = hidden_QN[queries].copy(), np.full((rounds, len(queries)), np.nan)
    noted = [Marks([], []) for _ in queries]
    page_QP = first_QP[queries]
    for turn in range(rounds):
      score_QN = np.empty(seen_QN.shape, np.float32)
      for row, query in enumerate(queries.tolist()):
        for item in page_QP[row]:
          (noted[row].right if right_QN[query, item] ^ flips_QN[query, item] else noted[row].wrong).append(int(item))
        score_QN[row] = method(collection, query, noted[row])
      np.put_along_axis(seen_QN, page_QP, True, axis=1)
      left = [np.flatnonzero(row_N) for row_N in right_QN[queries] & ~seen_QN]
      all_left = Relevance(left, [np.flatnonzero(row_N) for row_N in seen_QN])
      precision_TQ[turn] = [
        1.0 if not len(some) else value
        for some, value in zip(left, average_precision_of_scores(score_QN, all_left), strict=True)
      ]
      page_QP = shown(score_QN, seen_QN, page)
    results[name] = list(precision_TQ)
  return results


def several_pictures(adapter: Adapter, split: Split, seed: int) -> dict[str, list[np.ndarray]]:
  """Returns the average precision (Q) with one, two and three pictures, added as `Adapter.together` adds their scores.

  Beside it, that of the mean of the plain features. Queries are those with something right left; `seed` draws pictures.
  """
  collection, relevance = session_queries(adapter, split, "image"), split.relevance("image")
  rng, precision = np.random.default_rng(seed), collections.defaultdict(list)
  for query, both in enumerate(zip(relevance.positives, relevance.ignored, strict=True)):
    right = np.setdiff1d(*both)
    if len(right) < PICTURES:
      continue
    own = rng.choice(right, PICTURES - 1, replace=False)
    left = Relevance([np.setdiff1d(right, own)], [np.concatenate([both[1], own])])
    for count in range(PICTURES):
      items = own[:count].tolist()
      score_N = collection.served_QN[query] + (collection.like(items).sum(axis=0) if items else 0)
      feature_D = collection.query_QD[query] + collection.gallery_ND[items].sum(axis=0)
      ways = {"together": score_N, "mean of the plain features": collection.gallery_ND @ unit(feature_D)}
      for name, one_N in ways.items():
        precision[name, count].append(average_precision_of_scores(one_N[None].astype(np.float32), left)[0])
  names = dict.fromkeys(name for name, _ in precision)
  return {name: [np.array(precision[name, count]) for count in range(PICTURES)] for name in names}


def session_queries(adapter: Adapter, split: Split, query_type: str) -> SessionQueries:
  """Returns the queries of one type and their scores, scaled as `Adapter.refine_terms` scales them."""
  query_QD = np.asarray(split.queries[query_type][:], np.float32)
  gallery_ND = unit(np.asarray(split.gallery[:]), np.float32)
  prepared = {name: np.asarray(adapter.prepare(gallery_ND, name)) for name in adapter.heads}
  image = "image" if "image" in adapter.heads else query_type

  def scores(row_QD: np.ndarray, name: str) -> np.ndarray:
    adaptation = adapter(row_QD, name)
    score_QN = np.asarray(qat_jax.score(adaptation, prepared[name]))
    return (
      score_QN
      if query_type == image
      else marks.scale_to_plain(adaptation, prepared[name], gallery_ND)[:, None] * score_QN
    )

  every_MN = np.concatenate([scores(rows_ND, image) for rows_ND in np.array_split(gallery_ND, 8)])
  query_QD, served_QN = unit(query_QD, np.float32), scores(query_QD, query_type)
  return SessionQueries(query_QD, gallery_ND, served_QN, lambda items: every_MN[items])


def methods() -> dict[str, Method]:
  """Returns what is compared, by name."""
  rocchio = {f"Rocchio {right}, {wrong}": _rocchio(right, wrong) for right, wrong in ROCCHIO}
  return {
    BASE: lambda c, q, m: c.served_QN[q],
    **rocchio,
    "Qdrant, average vector": _averaged,
    "Qdrant, best score": _best,
    "Qdrant, sum of scores": _summed,
    "refine": _refined,
  }


def _refined(c: SessionQueries, query: int, m: Marks) -> np.ndarray:
  if not m.right:
    return c.served_QN[query]
  return c.served_QN[query] + marks.WEIGHT * c.like(m.right).mean(axis=0)


def _rocchio(right: float, wrong: float) -> Method:
  def scored(c: SessionQueries, query: int, m: Marks) -> np.ndarray:
    moved_D = c.query_QD[query].copy()
    for weight, items in ((right, m.right), (-wrong, m.wrong)):
      if items:
        moved_D += weight * c.gallery_ND[items].mean(axis=0)
    return c.gallery_ND @ unit(moved_D, np.float32)

  return scored


def _examples(c: SessionQueries, query: int, m: Marks) -> tuple[np.ndarray, np.ndarray]:
  """Returns the positive and the negative examples of a recommendation; the query is a positive one."""
  return np.concatenate([c.query_QD[[query]], c.gallery_ND[m.right]]), c.gallery_ND[m.wrong]


def _averaged(c: SessionQueries, query: int, m: Marks) -> np.ndarray:
  positive_PD, negative_MD = _examples(c, query, m)
  mean_D = positive_PD.mean(axis=0)
  return c.gallery_ND @ (2 * mean_D - negative_MD.mean(axis=0) if len(negative_MD) else mean_D)


def _best(c: SessionQueries, query: int, m: Marks) -> np.ndarray:
  positive_PD, negative_MD = _examples(c, query, m)
  best_N = (c.gallery_ND @ positive_PD.T).max(axis=1)
  worst_N = (c.gallery_ND @ negative_MD.T).max(axis=1, initial=-1)
  return np.where(best_N > worst_N, best_N, -np.square(worst_N))


def _summed(c: SessionQueries, query: int, m: Marks) -> np.ndarray:
  positive_PD, negative_MD = _examples(c, query, m)
  return c.gallery_ND @ (positive_PD.sum(axis=0) - negative_MD.sum(axis=0))


def shown(score_QN: np.ndarray, hidden_QN: np.ndarray, page: int) -> np.ndarray:
  """Returns the best items that were not hidden (QP)."""
  return np.argsort(-np.where(hidden_QN, -np.inf, score_QN), axis=1, kind="stable")[:, :page]


def lines(query_type: str, found: dict[str, list[np.ndarray]]) -> list[str]:
  """Returns a line for each method: its mean after each round, and what it adds to no marks after the first."""
  first = f"{query_type} queries, {len(found[BASE][0]):,} of them:"
  made = [first]
  for name, rounds in found.items():
    mean, low, high = (100 * x for x in paired_interval(rounds[0], found[BASE][0]))
    means = ", ".join(f"{100 * np.mean(one):.1f}" for one in rounds)
    made.append(f"  {name}: {means}; {mean:+.1f} [{low:.1f}, {high:.1f}]")
  return made


def draw_curves(curves: dict[str, dict[str, list[float]]], path: Path) -> None:
  """Draws the mean after each round, a panel for each query type."""
  from matplotlib.figure import Figure

  figure = Figure(figsize=(5 * len(curves), 4))
  axes = figure.subplots(1, len(curves), squeeze=False)
  for axis, (query_type, methods_) in zip(axes[0], curves.items(), strict=True):
    for name, means in methods_.items():
      axis.plot(range(1, len(means) + 1), means, marker="o", label=name)
    axis.set(title=f"{query_type} queries", xlabel="pages marked", ylabel="average precision of the rest × 100")
  axes[0][-1].legend(fontsize=6)
  figure.tight_layout()
  figure.savefig(path, dpi=120)


if __name__ == "__main__":
  main()
