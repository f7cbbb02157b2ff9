"""What the search's filter leaves over: python -m eval.speed.survivors --folders FOLDER….

For sets of features, the items a query that a filter in float32 and one in 8 bits leave to be scored, were the k-th
best score known from the start: k are the fewest. Random clusters and features like CLIP's (a few dimensions twenty
times as large, in a cone) are made; folders hold a gallery, whose own items are the queries.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np

import qat_jax
from eval import commands
from eval.markdown import markdown
from eval.speed.shortlists import clusters
from eval.speed.tools import make_adaptation, make_gallery
from qat_jax.runs import ANEW
from qat_jax.search.bounds import prepare
from qat_jax.search.coarse import copied
from qat_jax.search.exact import MARGIN
from qat_jax.search.gallery import parts
from qat_jax.search.kernels import upper_bounds
from qat_jax.types import Adaptation, as_gallery

LARGE = 20.0  # times as large are some dimensions of features like CLIP's
LARGE_DIMENSIONS = 4


def like_clip(items: int, width: int) -> np.ndarray:
  """Returns unit rows (ND) around a mean, a few dimensions far larger than the others."""
  rng = np.random.default_rng(0)
  scale_D = np.where(np.arange(width) < LARGE_DIMENSIONS, LARGE, 1).astype(np.float32)
  around_ND = rng.standard_normal(width).astype(np.float32) + 0.7 * rng.standard_normal((items, width), np.float32)
  item_ND = scale_D * around_ND
  return item_ND / np.linalg.norm(item_ND, axis=1, keepdims=True)


def survivors(adaptation: Adaptation, gallery_ND: np.ndarray, k: int) -> dict[str, float]:
  """Returns how many items a query reach its k-th best score: by float32's bounds, and by those of 8 bits."""
  array, queries = jnp.asarray(gallery_ND, jnp.float32), len(adaptation)
  least_Q = qat_jax.rank(adaptation, array, k).scores[:, -1] - np.float32(MARGIN)
  bounds = prepare(adaptation).bounds
  (part,) = parts(as_gallery(array), None, None, queries)
  ways = {"float32": None, "8 bits": copied(array)}
  looks = {name: upper_bounds(bounds, dataclasses.replace(part, coarse=copy), queries) for name, copy in ways.items()}
  return {name: len(look.reaching(least_Q)[0]) / queries for name, look in looks.items()}


def main(arguments: Sequence[str] | None = None) -> None:
  """Prints the table."""
  parser = commands.parser("eval.speed.survivors", __doc__)
  parser.add_argument("--folders", nargs="*", default=[], help="feature folders")
  parser.add_argument("--items", type=int, default=100_000, help="items of the galleries that are made")
  parser.add_argument("--width", type=int, default=512, help="width D of these")
  parser.add_argument("--queries", type=int, default=8)
  parser.add_argument("--k", type=int, default=100, help="items of a ranking")
  with commands.started(parser, arguments, ANEW) as options:
    print(f"items a query that are left to be scored, k = {options.k}")
    print(markdown(["features", "N", "D", "map", "float32", "8 bits"], measured(options)))


def measured(options: argparse.Namespace) -> list[list[str]]:
  """Returns the lines of the table for what the command line asks."""
  made = {
    "random": lambda: np.asarray(make_gallery(options.items, options.width, "float32")),
    "clusters": lambda: clusters(options.items, options.width, 1)[0],
    "like CLIP": lambda: like_clip(options.items, options.width),
  }
  stored = {"/".join(Path(folder).parts[-3:]): qat_jax.FeatureStore.open(folder) for folder in options.folders}
  lines = []
  for name, gallery in (made | stored).items():
    gallery_ND = np.asarray(gallery() if callable(gallery) else gallery[:], np.float32)
    queries = len(gallery_ND) // 2 + np.arange(options.queries)
    maps = make_adaptation(options.queries, gallery_ND.shape[1], 8, 0.5 * 0.7 ** np.arange(8))
    maps = maps.replace(query=jnp.asarray(gallery_ND[queries]))
    for kind, adaptation in (("plain", qat_jax.plain(maps.query)), ("R = 8", maps)):
      left = survivors(adaptation, gallery_ND, options.k)
      lines.append([name, f"{len(gallery_ND)}", f"{gallery_ND.shape[1]}", kind, *(f"{x:.0f}" for x in left.values())])
  return lines


if __name__ == "__main__":
  main()
