"""How much of the exact adapted ranking a ScaNN shortlist holds: python -m eval.speed.shortlists --items 10000,100000.

Two shortlists from the same index, searched with the raw query and with the folded one. Random clusters and a random
map, or a trained adapter's map on stored features. Prints recall@k for each shortlist length.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

import qat_jax
from eval.speed.ways import make_adaptation


def recalls(
  adaptation: qat_jax.Adaptation, raw_QD: np.ndarray, gallery: qat_jax.Gallery | np.ndarray, k: int, lengths: list[int]
) -> list[dict]:
  """Returns for each kind of query and shortlist length the share of the exact top k that the shortlist holds."""
  index = qat_jax.ScannIndex.build(gallery)
  exact_QK = qat_jax.rank(adaptation, gallery, k).ids
  rows = []
  for name, query_QD in (("raw", raw_QD), ("folded", np.asarray(qat_jax.fold(adaptation)))):
    for length in lengths:
      shortlist_QS = index.search(query_QD, length).ids
      pairs = zip(exact_QK, shortlist_QS, strict=True)
      recall = float(np.mean([np.isin(exact_K[exact_K >= 0], list_S).mean() for exact_K, list_S in pairs]))
      rows.append({"query": name, "items": len(gallery), "length": length, "k": k, "recall": recall})
  return rows


def clusters(items: int, width: int, queries: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns unit gallery rows around random centres, a hundred each, and queries around some of these centres."""
  rng = np.random.default_rng(0)
  centre_CD = rng.standard_normal((max(1, items // 100), width), np.float32)

  def around(rows: int) -> np.ndarray:
    x = centre_CD[rng.integers(0, len(centre_CD), rows)] + rng.standard_normal((rows, width), np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)

  return around(items), around(queries)


def table(rows: list[dict]) -> str:
  """Returns a Markdown table: a line for each gallery and kind of query, a column for each length."""
  lengths = sorted({row["length"] for row in rows})
  lines = ["| items | query | " + " | ".join(map(str, lengths)) + " |", "|---|---|" + "---|" * len(lengths)]
  for items, query in dict.fromkeys((row["items"], row["query"]) for row in rows):
    found = {row["length"]: row["recall"] for row in rows if (row["items"], row["query"]) == (items, query)}
    lines.append(f"| {items} | {query} | " + " | ".join(f"{found[length]:.3f}" for length in lengths) + " |")
  return "\n".join(lines)


def integers(text: str) -> list[int]:
  """Returns the numbers of a list with commas."""
  return [int(part) for part in text.split(",")]


def command_line() -> argparse.Namespace:
  """Returns what the command line asks for."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
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
  parser.add_argument("--json", help="file to write the rows to")
  return parser.parse_args()


def main() -> None:
  """Measures, prints the table, writes the rows."""
  options = command_line()
  rows = []
  if options.adapter:
    store = qat_jax.FeatureStore.open(options.query_features)
    raw_QD = np.asarray(store[: options.queries], np.float32)
    adaptation = qat_jax.load(options.adapter)(raw_QD, "text" if store.kind == "text" else "image")
    rows = recalls(adaptation, raw_QD, qat_jax.FeatureStore.open(options.gallery), options.k, options.lengths)
  else:
    strengths_R = options.strength * options.decay ** np.arange(options.rank)
    adaptation = make_adaptation(options.queries, options.width, options.rank, strengths_R)
    for items in options.items:
      gallery_ND, query_QD = clusters(items, options.width, options.queries)
      rows += recalls(adaptation.replace(query=query_QD), query_QD, gallery_ND, options.k, options.lengths)
  print(f"recall@{options.k} of the exact adapted ranking, by shortlist length")
  print(table(rows))
  if options.json:
    Path(options.json).write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
  main()
