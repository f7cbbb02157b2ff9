"""The picture of the README: one toy, asked in four ways.

    python -m eval.report.told runs/demo docs/before_after.png

The query is plain, then told in words to ignore the scene, to be alike in colour, and to be alike in shape. The toy is
the one in the middle by what ignoring the scene gains. Framed items are right: the toy itself, or its colour or shape.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from PIL import Image

import qat_jax
from eval.report.sheets import Sheet, draw_sheets
from eval.told import column, precision_by, seen, toy_aspects
from qat_jax import words
from qat_jax.datasets.toybox.render import drawn
from qat_jax.features.retrieval_set import RetrievalSet
from qat_jax.runs import explained
from qat_jax.types import Adaptation

SHOWN = 7  # items of a ranking


def picture(workdir: Path) -> Image.Image:
  """Returns the four rankings of one query of a demo's test split, as one picture."""
  split, encoder = RetrievalSet.open(workdir / "features").split("test"), qat_jax.load_encoder("toy_clip")
  book = {name: words.encode(toy_aspects()[name], encoder, name) for name in ("colour", "kind", "scene")}
  gallery, store = split.gallery, split.queries["image"]
  query_QD, items, queries = np.asarray(store[:], np.float32), seen(gallery.ids), seen(store.ids)
  told = lambda rows, **request: qat_jax.by_words(query_QD[rows], aspects=book, gallery=gallery, **request)
  right_QN = column(queries, "name")[:, None] == column(items, "name")[None]
  gallery_ND = np.asarray(gallery[:], np.float32)
  before_Q = precision_by(qat_jax.plain(jnp.asarray(query_QD)), gallery_ND, right_QN)
  after_Q = precision_by(told(slice(None), ignore="scene"), gallery_ND, right_QN)
  middle = int(np.argsort(after_Q - before_Q, kind="stable")[len(after_Q) // 2])
  one, toy = slice(middle, middle + 1), queries[middle]

  def row(adaptation: Adaptation, attribute: str) -> list[tuple[Image.Image, bool]]:
    first = qat_jax.rank(adaptation, gallery, SHOWN).ids[0]
    return [(drawn(gallery.ids[n]), items[n][attribute] == toy[attribute]) for n in first]

  ways = (
    ("plain", row(qat_jax.plain(jnp.asarray(query_QD[one])), "name")),
    ("not the\nscene", row(told(one, ignore="scene"), "name")),
    ("alike in\ncolour", row(told(one, alike="colour"), "colour")),
    ("alike in\nshape", row(told(one, alike="kind"), "kind")),
  )
  titles = ("framed: the same toy", "framed: the same colour, the same shape")
  query = drawn(store.ids[middle])
  sheets = [
    Sheet(query, before, after, title, "image", before_name=name, after_name=other)
    for title, (name, before), (other, after) in zip(titles, ways[::2], ways[1::2], strict=True)
  ]
  return draw_sheets(sheets)


if __name__ == "__main__":
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("workdir", type=Path, help="a run of configs/demo.py")
  parser.add_argument("out", type=Path, help="the picture to write")
  flags = parser.parse_args()
  with explained():
    picture(flags.workdir).save(flags.out)
