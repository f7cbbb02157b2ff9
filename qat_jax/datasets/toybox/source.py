"""Toybox: a retrieval data set that draws itself, offline and the same everywhere; the data of the demo.

Toys come in families whose members differ in one attribute, and a family lies in one split only. A query's own views
are in no gallery; its instance's other views are. Needs no TensorFlow.

    source = toybox.source("test_gallery", "data")     # renders on first use, about 20 seconds a config
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Iterator
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from qat_jax.datasets.toybox import captions as toybox_captions
from qat_jax.datasets.toybox import render as toybox_render
from qat_jax.datasets.toybox.objects import FAMILIES, Toy, families

TEXT_VIEW = 1000  # views of this number on are described or shown in queries alone
IMAGE_VIEW = 2000


@dataclasses.dataclass(kw_only=True)
class ToyboxConfig(tfds.core.BuilderConfig):
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
    first, found = self.first_family, {}
    for part in ("train", "val", "test", "pretrain"):
      count = getattr(self, part)
      if count:
        found[part] = range(first, first + count)
        first += count
    if first > FAMILIES:
      raise ValueError(f"config {self.name!r} asks for {first} families, but the toybox has {FAMILIES}")
    return found


class Toybox(tfds.core.GeneratorBasedBuilder):
  """Small objects of a few coloured, textured shapes, in hard families, with captions."""

  VERSION = tfds.core.Version("1.3.0")
  url_infos: ClassVar[dict] = {}  # nothing is downloaded; else TFDS looks for a list of checksums beside this file
  BUILDER_CONFIGS: ClassVar = (
    ToyboxConfig(
      name="default",
      description="What the demo needs.",
      train=1350,
      val=200,
      test=430,
      train_views=4,
      gallery_members=2,
    ),
    ToyboxConfig(
      name="pretrain",
      description="Families of their own, for the demo's encoder.",
      first_family=2000,
      pretrain=6000,
      pretrain_views=3,
    ),
    ToyboxConfig(name="tiny", description="For tests.", train=6, val=4, test=5, pretrain=6),
  )

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description=self.__doc__,
      features=tfds.features.FeaturesDict(
        {
          "id": tfds.features.Text(),
          "image": tfds.features.Image(shape=(toybox_render.SIZE, toybox_render.SIZE, 3), encoding_format="jpeg"),
          "caption": tfds.features.Text(),
          "instance": tfds.features.Text(),
          "family": tfds.features.Text(),
        }
      ),
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
    del dl_manager
    config, found = self.builder_config, {}
    views = {"train": config.train_views, "pretrain": config.pretrain_views}
    for part, numbers in config.parts().items():
      if part in views:
        found[part] = self._generate_examples(numbers, range(views[part]), part == "pretrain")
      else:
        found[f"{part}_gallery"] = self._generate_examples(
          numbers, range(config.gallery_views), members=config.gallery_members
        )
        for kind, view in (("text", TEXT_VIEW), ("image", IMAGE_VIEW)):
          found[f"{part}_{kind}_queries"] = self._generate_examples(
            numbers, range(view, view + 1), members=config.queried
          )
    return found

  def _generate_examples(
    self, numbers: range, views: range, coarse: bool = False, members: int | None = None
  ) -> Iterator[tuple[int, dict]]:
    caption = toybox_captions.coarse if coarse else toybox_captions.detailed
    toys = [toy for number in numbers for toy in families()[number][:members]]
    for key, (toy, view) in enumerate((toy, view) for toy in toys for view in views):
      yield key, example(toy, view, caption(toy, view))


def example(toy: Toy, view: int, caption: str) -> dict[str, Any]:
  """Returns one item, its image encoded."""
  return {
    "id": f"{toy.name}_{view}",
    "image": toybox_render.encode(toybox_render.render(toy, view)),
    "caption": caption,
    "instance": toy.name,
    "family": toy.family,
  }


class Source:
  """Random access to one split: `source[i]` → id, image (encoded), caption, instance, family."""

  def __init__(self, records: Any) -> None:
    self.records = records

  def __len__(self) -> int:
    return len(self.records)

  def __getitem__(self, position: int) -> dict[str, Any]:
    record = self.records[position]
    return {key: value if key == "image" else value.decode() for key, value in record.items()}


def source(split: str, data_dir: str | os.PathLike, config: str = "default") -> Source:
  """Returns a split of the toybox, rendering the config into `data_dir` where it is not there yet.

  A rendering that was killed counts as not there: the folder gets its name when it is whole.

  Raises:
    ValueError: no such config or split.
  """
  if config not in Toybox.builder_configs:
    raise ValueError(f"toybox has no config {config!r}; there are {', '.join(sorted(Toybox.builder_configs))}")
  builder = Toybox(config=config, data_dir=pathlib.Path(data_dir), file_format="array_record")
  builder.download_and_prepare()
  if split not in builder.info.splits:
    raise ValueError(f"toybox/{config} has no split {split!r}; there are {', '.join(builder.info.splits)}")
  decoders = {"image": tfds.decode.SkipDecoding()}
  return Source(builder.as_data_source(split, decoders=decoders))
