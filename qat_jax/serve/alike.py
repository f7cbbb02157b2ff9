"""Near-duplicates of a feature folder as a file, and as a page with the pictures side by side."""

import base64
import html
import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pyarrow as pa

from qat_jax.adaptation import plain
from qat_jax.duplicates import groups, pairs
from qat_jax.features.store import FeatureStore
from qat_jax.search.rank import rank
from qat_jax.serve.items import Items
from qat_jax.serve.job_files import as_parquet
from qat_jax.serve.limits import Refused
from qat_jax.serve.pictures import Pictures
from qat_jax.stages import write_whole

SHOWN, EACH = 200, 8  # groups on the page, and pictures of each
PIXELS = 200_000_000
CHUNK = 4096  # items that are looked for at once in another folder
STYLE = (
  "body{font:16px sans-serif;margin:1rem}section{margin:1rem 0}figure{display:inline-block;margin:.3rem;width:160px}"
)


def find(
  folder: str | os.PathLike,
  threshold: float,
  out: str | os.PathLike,
  images: str | os.PathLike | None = None,
  report: str | os.PathLike | None = None,
) -> tuple[int, int, int]:
  """Writes the near-duplicates of a feature folder; returns how many they are, of how many items, in how many groups.

  Args:
    folder: a feature folder.
    threshold: the least cosine of two near-duplicates.
    out: Parquet, a row for each item of a group: item_id, group (from 0, the largest first) and `cosine`, that with the
      most alike of the group. The first item of a group is the first of the folder.
    images: a folder of the pictures, for the report.
    report: an HTML file with the pictures of the largest groups.

  Raises as `FeatureStore.open` and `pairs` do; FileNotFoundError where the pictures' folder is missing.
  """
  store = FeatureStore.open(folder)
  pictures = Pictures(images, PIXELS)
  found = pairs(store, threshold)
  root_N = groups(len(store), found)
  cosine_N = np.full(len(store), -np.inf)
  for ends in (found.first, found.second):
    np.maximum.at(cosine_N, ends, found.cosine)
  member_M = np.flatnonzero(np.isfinite(cosine_N))
  _, code_M, count = np.unique(root_N[member_M], return_inverse=True, return_counts=True)
  number = np.empty(len(count), np.int64)
  number[np.argsort(-count, kind="stable")] = np.arange(len(count))
  order = np.lexsort((member_M, number[code_M]))
  member_M, group_M = member_M[order], number[code_M][order]
  ids = store.arrow_ids().take(pa.array(member_M))
  table = pa.table({"item_id": ids, "group": pa.array(group_M), "cosine": pa.array(cosine_N[member_M], pa.float32())})
  write_whole(Path(out), as_parquet([table]))
  if report is not None:
    write_whole(Path(report), page(Items.of(store), pictures, member_M, group_M, cosine_N).encode())
  return len(member_M), len(store), len(count)


def find_shared(
  folder: str | os.PathLike, against: str | os.PathLike, threshold: float, out: str | os.PathLike
) -> tuple[int, int]:
  """Writes the items that are nearly the same as one of another folder; returns how many they are, of how many items.

  `out` is Parquet, a row for each such item: item_id, other_id and cosine, of the most alike. Raises ValueError for a
  threshold that is no cosine from 0.5 to 1, and as `qat_jax.rank` does.
  """
  if not 0.5 <= threshold <= 1:
    raise ValueError(f"the threshold is {threshold}; give a cosine from 0.5 to 1")
  store, other = FeatureStore.open(folder), FeatureStore.open(against)
  ids, cosines = [], []
  for _, rows_ND in store.chunks(CHUNK):
    best = rank(plain(jnp.asarray(rows_ND, jnp.float32)), other, 1)
    ids.append(best.ids[:, 0])
    cosines.append(best.scores[:, 0])
  other_N, cosine_N = np.concatenate(ids), np.concatenate(cosines)
  mine = np.flatnonzero(cosine_N >= np.float32(threshold))
  take = lambda names, rows: names.take(pa.array(rows))
  columns = {"item_id": take(store.arrow_ids(), mine), "other_id": take(other.arrow_ids(), other_N[mine])}
  write_whole(Path(out), as_parquet([pa.table({**columns, "cosine": pa.array(cosine_N[mine])})]))
  return len(mine), len(store)


def page(items: Items, pictures: Pictures, member_M: np.ndarray, group_M: np.ndarray, cosine_N: np.ndarray) -> str:
  """Returns the page of the largest groups; a picture that cannot be had is named."""
  lines = [f"<!doctype html><meta charset=utf-8><title>Near-duplicates</title><style>{STYLE}</style>"]
  total = len(np.unique(group_M))
  lines.append(f"<h1>{total:,} groups of near-duplicates</h1><p>The {min(total, SHOWN):,} largest.</p>")
  for group in range(min(total, SHOWN)):
    mine = member_M[group_M == group]
    lines.append(f"<section><h2>{len(mine):,} alike</h2>")
    for record, position in zip(items.records(mine[:EACH]), mine[:EACH], strict=True):
      name = html.escape(record["id"])
      try:
        data = base64.b64encode(pictures.thumbnail(record)).decode()
        shown = f'<img width=160 alt="{name}" src="data:image/jpeg;base64,{data}">'
      except Refused:
        shown = "(no picture)"
      lines.append(f"<figure>{shown}<figcaption>{name}, {cosine_N[position]:.3f}</figcaption></figure>")
    lines.append("</section>")
  return "\n".join(lines)
