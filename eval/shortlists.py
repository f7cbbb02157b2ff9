"""How much of the exact adapted ranking a ScaNN shortlist holds: python -m eval.shortlists --items 10000,100000.

Two shortlists from the same index, searched with the raw query and with the folded one. Random clusters and a random
map, or a trained adapter's map on stored features. Prints recall@k for each shortlist length.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from absl import app, flags

import qat_jax
from eval.ways import make_adaptation

ITEMS = flags.DEFINE_list("items", ["10000", "100000"], "gallery sizes")
LENGTHS = flags.DEFINE_list("lengths", ["100", "200", "500", "1000"], "shortlist lengths")
WIDTH = flags.DEFINE_integer("width", 128, "width D of random features")
RANK = flags.DEFINE_integer("rank", 16, "rank R of the random map")
STRENGTH = flags.DEFINE_float("strength", 0.5, "the random map's largest singular value beyond I")
DECAY = flags.DEFINE_float("decay", 0.7, "each singular value over the one before")
QUERIES = flags.DEFINE_integer("queries", 64, "queries")
K = flags.DEFINE_integer("k", 100, "items of the exact ranking to be found")
ADAPTER = flags.DEFINE_string("adapter", None, "a trained adapter, with --gallery and --query_features")
GALLERY = flags.DEFINE_string("gallery", None, "a feature folder in the adapter's space")
QUERY_FEATURES = flags.DEFINE_string("query_features", None, "a feature folder")
JSON = flags.DEFINE_string("json", None, "file to write the rows to")


def recalls(
  adaptation: qat_jax.Adaptation, raw_QD: np.ndarray, gallery: object, k: int, lengths: list[int]
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


def main(_: list[str]) -> None:
  lengths = [int(length) for length in LENGTHS.value]
  rows = []
  if ADAPTER.value:
    store = qat_jax.FeatureStore.open(QUERY_FEATURES.value)
    raw_QD = np.asarray(store[: QUERIES.value], np.float32)
    adaptation = qat_jax.load(ADAPTER.value)(raw_QD, "text" if store.kind == "text" else "image")
    rows = recalls(adaptation, raw_QD, qat_jax.FeatureStore.open(GALLERY.value), K.value, lengths)
  else:
    strengths_R = STRENGTH.value * DECAY.value ** np.arange(RANK.value)
    adaptation = make_adaptation(QUERIES.value, WIDTH.value, RANK.value, strengths_R)
    for items in map(int, ITEMS.value):
      gallery_ND, query_QD = clusters(items, WIDTH.value, QUERIES.value)
      rows += recalls(adaptation.replace(query=query_QD), query_QD, gallery_ND, K.value, lengths)
  print(f"recall@{K.value} of the exact adapted ranking, by shortlist length")
  print(table(rows))
  if JSON.value:
    Path(JSON.value).write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
  app.run(main)
