"""Small things in large pictures: the demo's toys put together, 4, 9 and 16 in a picture, and found by their crops.

    python -m eval.collages --workdir runs/demo [--split test] [--json OUT]

Each picture of the split's gallery is in one collage, at a size of 0.8 to 1 of its cell and at any place in it. A
query is another view of a toy; right are the collages with a view of it. Collages are ranked by one feature each, or
by their best crop: plain, with the scene ignored by words, and by the run's image head. Figures are mAP × 100 over
all collages; the box is right where the centre of a right collage's best crop lies on the toy. Right collages among
the first ten count, and then all of them.
"""

import json
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from PIL import Image

import qat_jax
from eval import commands
from eval.benchmarks.task import relevance_of
from eval.told import GROUND, SCENES
from qat_jax import words
from qat_jax.adaptation import plain
from qat_jax.datasets import BOX
from qat_jax.datasets.tiles import Tiles
from qat_jax.datasets.toybox.objects import families
from qat_jax.datasets.toybox.render import SIZE, render
from qat_jax.features.retrieval_set import RetrievalSet, Split
from qat_jax.metrics import average_precision
from qat_jax.types import Adaptation, Relevance

CROPS = {2: (1, 2, 3), 3: (1, 2, 3, 4, 5), 4: (1, 2, 3, 4, 5)}  # toys a side → sizes of crops
SMALLEST = 0.8  # of a cell
FIRST = 10


class Collages:
  """A source of collages of n × n toys, drawn with one seed; `boxes` says where each toy is."""

  def __init__(self, ids: Sequence[str], n: int) -> None:
    toys = {toy.name: toy for family in families() for toy in family}
    rng = np.random.default_rng(n)
    order = rng.permutation(len(ids))[: len(ids) // n**2 * n**2].reshape(-1, n**2)
    self.n, self.rng = n, rng
    self.views = [[(toys[ids[i].rsplit("_", 1)[0]], int(ids[i].rsplit("_", 1)[1])) for i in row] for row in order]
    side = rng.uniform(SMALLEST, 1, order.shape)
    corner = np.stack([np.arange(n**2) % n, np.arange(n**2) // n], axis=1) + rng.uniform(0, 1, (*order.shape, 2)) * (
      1 - side[..., None]
    )
    self.boxes = np.concatenate([corner, corner + side[..., None]], axis=2) / n  # left, top, right, bottom

  def __len__(self) -> int:
    return len(self.views)

  def __getitem__(self, position: int) -> dict[str, Any]:
    """Returns a collage's record."""
    size = self.n * SIZE
    image = Image.new("RGB", (size, size), (128, 128, 128))
    for (toy, view), box in zip(self.views[position], self.boxes[position], strict=True):
      left, top, right, bottom = (round(float(x) * size) for x in box)
      image.paste(render(toy, view).resize((right - left, bottom - top), Image.Resampling.BICUBIC), (left, top))
    return {"id": f"collage{position:04d}", "image": image, "caption": None, "instance": None}


def main(arguments: Sequence[str] | None = None) -> None:
  """Parses the flags, prints a line for each number of toys, and writes them where --json says."""
  parser = commands.parser("eval.collages", __doc__, "--workdir", "--split", "--json")
  with commands.started(parser, arguments) as flags:
    split = RetrievalSet.open(flags.workdir / "features").split(flags.split)
    adapter, encoder = qat_jax.load(flags.workdir), qat_jax.load_encoder("toy_clip")
    lines = {}
    for n in CROPS:
      lines[n**2] = collage_figures(split, adapter, encoder, n)
      print(f"{n**2} toys: {json.dumps(lines[n**2])}", flush=True)
    commands.write_figures(flags.json, lines)


def collage_figures(split: Split, adapter: qat_jax.Adapter, encoder: Any, n: int) -> dict[str, Any]:
  """Returns the figures of collages of n × n toys."""
  collages = Collages([str(one) for one in split.gallery.ids], n)
  tiles = Tiles(collages, CROPS[n])
  records = [tiles[i] for i in range(len(tiles))]
  item_ND = encoder.images([record["image"] for record in records])
  box_N4 = np.array([[record[side] for side in BOX] for record in records])
  picture_N = np.repeat(np.arange(len(collages)), len(tiles.tiles))
  queries = split.queries["image"]
  query_QD, toy_Q = np.asarray(queries[:], np.float32), [str(one).rsplit("_", 1)[0] for one in queries.ids]
  there = [[toy.name for toy, _ in row] for row in collages.views]
  right = [np.flatnonzero([name in row for row in there]) for name in toy_Q]
  some = np.flatnonzero([len(rows) > 0 for rows in right])
  relevance = relevance_of([right[i] for i in some])
  scene = words.encode([GROUND.format(word) for word in SCENES], encoder, "scene")
  told = qat_jax.by_words(query_QD[some], ignore="scene", aspects={"scene": scene}, gallery=item_ND)
  image = adapter(query_QD[some], "image")
  figures: dict[str, Any] = {"collages": len(collages), "crops": len(item_ND)}
  whole_ND = item_ND[picture_N.searchsorted(np.arange(len(collages)))]
  one = qat_jax.rank(plain(jnp.asarray(query_QD[some])), whole_ND, len(collages))
  figures["one feature a collage"] = {"mAP": mean_precision(one.ids, relevance)}
  for name, adaptation, items in (
    ("plain", plain(jnp.asarray(query_QD[some])), item_ND),
    ("scene ignored", told, item_ND),
    ("image head", image, np.asarray(adapter.prepare(item_ND, "image"))),
  ):
    figures[name] = of_crops(adaptation, items, picture_N, box_N4, collages, there, [toy_Q[i] for i in some], relevance)
  return figures


def of_crops(
  adaptation: Adaptation,
  item_ND: np.ndarray,
  picture_N: np.ndarray,
  box_N4: np.ndarray,
  collages: Collages,
  there: list[list[str]],
  names: list[str],
  relevance: Relevance,
) -> dict[str, float]:
  """Returns mAP of collages ranked by their best crop, and how often that crop's centre lies on the toy.

  Args:
    adaptation: Q queries.
    item_ND: the crops.
    picture_N: the collage of each.
    box_N4: the box of each.
    collages: where the toys are.
    there: for each collage its toys, by place.
    names: the toy of each query.
    relevance: the right collages of each query.
  """
  ranking = qat_jax.rank(adaptation, item_ND, len(collages), group=picture_N)
  picture_QK = picture_N[ranking.ids]
  hit = []
  for query, name in enumerate(names):
    for place in np.flatnonzero(np.isin(picture_QK[query], relevance.positives[query])):
      picture = picture_QK[query, place]
      own = collages.boxes[picture][[one == name for one in there[picture]]]
      box_4 = box_N4[ranking.ids[query, place]]
      x, y = (box_4[0] + box_4[2]) / 2, (box_4[1] + box_4[3]) / 2
      inside = (own[:, 0] <= x) & (x <= own[:, 2]) & (own[:, 1] <= y) & (y <= own[:, 3])
      hit.append((place < FIRST, bool(inside.any())))
  first, on_it = np.array(hit).T
  share = lambda flags: round(100 * float(np.mean(flags)), 1)
  return {"mAP": mean_precision(picture_QK, relevance), "box, first ten": share(on_it[first]), "box, all": share(on_it)}


def mean_precision(picture_QK: np.ndarray, relevance: Relevance) -> float:
  """Returns mAP × 100."""
  return round(100 * float(np.mean(average_precision(picture_QK, relevance))), 1)


if __name__ == "__main__":
  main()
