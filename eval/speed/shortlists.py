"""How much of the exact adapted ranking a shortlist holds: python -m eval.speed.shortlists --index scann faiss:HNSW32.

Two shortlists from the same index, searched with the raw query and with the folded one. Random clusters and a random
map, or a trained adapter's map on stored features. Prints recall@k for each shortlist length, and the milliseconds a
query that the longest one takes, all queries at once.
"""

from __future__ import annotations

import argparse
import functools
import tempfile
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import qat_jax
from eval import commands
from eval.markdown import markdown
from eval.speed.tools import make_adaptation, seconds_in_turn
from qat_jax.runs import ANEW
from qat_jax.search.index import Index

KINDS = "exact, scann, faiss:FACTORY, qdrant[:URL], pgvector[:hnsw], lancedb"
REPEATS = 3  # runs of a timed search; the fastest counts


def built(name: str, gallery: qat_jax.Gallery | np.ndarray, folder: Path, postgres: str | None) -> Index:
  """Returns the index that a name asks for: a kind, and after a colon what it is to be, as in faiss:HNSW32."""
  kind, _, what = name.partition(":")
  if kind == "exact":
    return qat_jax.ExactIndex.build(gallery)
  if kind == "scann":
    return qat_jax.ScannIndex.build(gallery)
  if kind == "faiss":
    return qat_jax.FaissIndex.build(gallery, what or "Flat")
  if kind == "qdrant":
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")  # above 20,000 items it recommends a server
      return qat_jax.QdrantIndex.build(gallery, what or ":memory:", folder.name)
  if kind == "lancedb":
    return qat_jax.LanceIndex.build(gallery, folder / "lance")
  if kind == "pgvector" and postgres:
    return qat_jax.PgvectorIndex.build(gallery, postgres, folder.name, graph=what == "hnsw")
  raise ValueError(f"the index is {name!r}; wanted one of {KINDS}, and pgvector with --postgres ADDRESS")


def recalls(
  adaptation: qat_jax.Adaptation,
  raw_QD: np.ndarray,
  gallery: qat_jax.Gallery | np.ndarray,
  index: Index,
  k: int,
  lengths: list[int],
) -> list[dict]:
  """Returns for each kind of query and shortlist length the share of the exact top k that the shortlist holds."""
  exact_QK = qat_jax.rank(adaptation, gallery, k).ids
  raw_QD = np.pad(raw_QD, ((0, 0), (0, index.width - raw_QD.shape[1])))  # a prepared gallery may be wider
  rows = []
  for name, query_QD in (("raw", raw_QD), ("folded", np.asarray(qat_jax.fold(adaptation)))):
    for length in lengths:
      shortlist_QS = index.search(query_QD, length).ids
      pairs = zip(exact_QK, shortlist_QS, strict=True)
      recall = float(np.mean([np.isin(exact_K[exact_K >= 0], list_S).mean() for exact_K, list_S in pairs]))
      rows.append({"query": name, "items": len(gallery), "length": length, "k": k, "recall": recall})
    search = functools.partial(index.search, query_QD, max(lengths))
    ms = 1000 * min(seconds_in_turn({"search": search}, REPEATS)["search"]) / len(query_QD)
    rows[-len(lengths) :] = [row | {"ms": ms} for row in rows[-len(lengths) :]]
  return rows


def clusters(items: int, width: int, queries: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns unit gallery rows around random centres, a hundred each, and queries around some of these centres."""
  rng = np.random.default_rng(0)
  centre_CD = rng.standard_normal((max(1, items // 100), width), np.float32)

  def around(rows: int) -> np.ndarray:
    x = centre_CD[rng.integers(0, len(centre_CD), rows)] + rng.standard_normal((rows, width), np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)

  return around(items), around(queries)


def recall_table(rows: list[dict]) -> str:
  """Returns a Markdown table: a line for each gallery, index and kind of query, a column for each length."""
  lengths = sorted({row["length"] for row in rows})
  lines = []
  for key in dict.fromkeys((row["items"], row["index"], row["query"]) for row in rows):
    same = [row for row in rows if (row["items"], row["index"], row["query"]) == key]
    recall = {row["length"]: f"{row['recall']:.3f}" for row in same}
    lines.append([*map(str, key), *(recall[length] for length in lengths), f"{same[0]['ms']:.2f}"])
  return markdown(["items", "index", "query", *map(str, lengths), "ms a query"], lines)


def integers(text: str) -> list[int]:
  """Returns the numbers of a list with commas."""
  return [int(part) for part in text.split(",")]


def options_parser() -> argparse.ArgumentParser:
  """Returns the parser of the command line."""
  parser = commands.parser("eval.speed.shortlists", __doc__, "--json")
  parser.add_argument("--index", nargs="+", default=["scann"], help=f"one or more of {KINDS}")
  parser.add_argument("--postgres", help="address of a PostgreSQL with pgvector, where tables may be made")
  parser.add_argument("--items", type=integers, default="10000,100000", help="gallery sizes, commas between")
  parser.add_argument("--lengths", type=integers, default="100,200,500,1000", help="shortlist lengths, commas between")
  parser.add_argument("--width", type=int, default=128, help="width D of random features")
  parser.add_argument("--rank", type=int, default=16, help="rank R of the random map")
  parser.add_argument("--strength", type=float, default=0.5, help="the random map's largest singular value beyond I")
  parser.add_argument("--decay", type=float, default=0.7, help="each singular value over the one before")
  parser.add_argument("--queries", type=int, default=64, help="queries")
  parser.add_argument("--k", type=int, default=100, help="items of the exact ranking to be found")
  parser.add_argument("--adapter", help="a trained adapter, with --gallery and --query_features")
  parser.add_argument("--gallery", help="a feature folder in the adapter's space")
  parser.add_argument("--query_features", help="a feature folder")
  return parser


def measured(options: argparse.Namespace) -> list[dict]:
  """Returns a row for each gallery, index, kind of query and length that the command line asks for."""
  if options.adapter:
    store = qat_jax.FeatureStore.open(options.query_features)
    raw_QD = np.asarray(store[: options.queries], np.float32)
    adaptation = qat_jax.load(options.adapter)(raw_QD, "text" if store.kind == "text" else "image")
    inputs: Iterable[Any] = [(adaptation, raw_QD, qat_jax.FeatureStore.open(options.gallery))]
  else:
    strengths_R = options.strength * options.decay ** np.arange(options.rank)
    adaptation = make_adaptation(options.queries, options.width, options.rank, strengths_R)
    made = (clusters(items, options.width, options.queries) for items in options.items)
    inputs = ((adaptation.replace(query=query_QD), query_QD, gallery_ND) for gallery_ND, query_QD in made)
  rows: list[dict] = []
  for adaptation, raw_QD, gallery in inputs:
    for name in options.index:
      with tempfile.TemporaryDirectory(prefix="shortlists_") as folder:
        index = built(name, gallery, Path(folder), options.postgres)
        rows += [
          {"index": name} | row for row in recalls(adaptation, raw_QD, gallery, index, options.k, options.lengths)
        ]
  return rows


def main(arguments: Sequence[str] | None = None) -> None:
  """Measures, prints the table, writes the rows."""
  with commands.started(options_parser(), arguments, ANEW) as options:
    rows = measured(options)
    print(f"recall@{options.k} of the exact adapted ranking, by shortlist length")
    print(recall_table(rows))
    commands.write_figures(options.json, rows)


if __name__ == "__main__":
  main()
