"""Toybox: a retrieval data set that draws itself, offline and the same everywhere; the data of the demo.

Toys come in families whose members differ in one attribute, and a family lies in one split only. A query's own views
are in no gallery; its instance's other views are. A picture is drawn when it is read, in about a millisecond.

    source = toybox.source("test_gallery")
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from qat_jax.datasets.sources import checked_position
from qat_jax.datasets.toybox import captions
from qat_jax.datasets.toybox.objects import FAMILIES, Toy, families
from qat_jax.datasets.toybox.render import as_jpeg, render

QUERY_VIEWS = {"text": 1000, "image": 2000}  # views of these numbers are described or shown in queries alone


@dataclasses.dataclass(frozen=True)
class Config:
  """How many families each part has, from which number on, and how many views an instance has there."""

  first_family: int = 0
  train: int = 0
  val: int = 0
  test: int = 0
  pretrain: int = 0
  train_views: int = 3
  gallery_views: int = 3
  pretrain_views: int = 1
  gallery_members: int = 4  # instances of each family in a gallery
  queried: int = 2  # those of them that have a text and an image query

  def parts(self) -> dict[str, range]:
    """Returns part → the numbers of its families."""
    first, parts = self.first_family, {}
    for part in ("train", "val", "test", "pretrain"):
      if count := getattr(self, part):
        parts[part] = range(first, first + count)
        first += count
    if first > FAMILIES:
      raise ValueError(f"a config asks for {first} families, but the toybox has {FAMILIES}")
    return parts


CONFIGS = {
  "default": Config(train=1350, val=200, test=430, train_views=4, gallery_members=2),  # what the demo needs
  "pretrain": Config(first_family=2000, pretrain=6000, pretrain_views=3),  # for the demo's encoder
  "tiny": Config(train=6, val=4, test=5, pretrain=6),  # for tests
  # As the demo's val and test, of families that nobody has seen: how much of a figure is chance (eval.nothing).
  **{f"drawn{n}": Config(first_family=8000 + 630 * n, val=200, test=430, gallery_members=2) for n in range(6)},
}


class Source:
  """Random access to one split: `source[i]` → id, image (encoded), caption, instance, family."""

  def __init__(self, toys: Sequence[Toy], views: range, describe: Callable[[Toy, int], str]) -> None:
    self.toys, self.views, self.describe = toys, views, describe

  def __len__(self) -> int:
    return len(self.toys) * len(self.views)

  def __getitem__(self, position: int) -> dict[str, Any]:
    checked_position(position, self)
    toy, view = self.toys[position // len(self.views)], self.views[position % len(self.views)]
    about = {"id": f"{toy.name}_{view}", "caption": self.describe(toy, view)}
    return {**about, "image": as_jpeg(render(toy, view)), "instance": toy.name, "family": toy.family}


def source(split: str, config: str = "default") -> Source:
  """Returns a split of the toybox; raises ValueError where there is no such config or split."""
  if config not in CONFIGS:
    raise ValueError(f"toybox has no config {config!r}; there are {', '.join(sorted(CONFIGS))}")
  splits = _splits(CONFIGS[config])
  if split not in splits:
    raise ValueError(f"toybox/{config} has no split {split!r}; there are {', '.join(splits)}")
  part, members, views = splits[split]
  toys = [toy for number in CONFIGS[config].parts()[part] for toy in families()[number][:members]]
  return Source(toys, views, captions.coarse if part == "pretrain" else captions.detailed)


def _splits(config: Config) -> dict[str, tuple[str, int | None, range]]:
  """Returns split → its part, how many members of a family it has, and which views of them."""
  splits: dict[str, tuple[str, int | None, range]] = {}
  for part in config.parts():
    if part in ("train", "pretrain"):
      splits[part] = part, None, range(getattr(config, f"{part}_views"))
      continue
    splits[f"{part}_gallery"] = part, config.gallery_members, range(config.gallery_views)
    for kind, view in QUERY_VIEWS.items():
      splits[f"{part}_{kind}_queries"] = part, config.queried, range(view, view + 1)
  return splits
