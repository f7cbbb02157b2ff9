"""The command migrate: a collection of one encoder → one of another, to be searched before all of it is encoded."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tqdm

from qat_jax.datasets import UnreadableImage
from qat_jax.datasets.pictures import decode
from qat_jax.datasets.splits import open_source
from qat_jax.encoders import Encoder, load_encoder
from qat_jax.sealed import read_record
from qat_jax.serve.collection.collection import RECORD, Collection
from qat_jax.serve.collection.migrating import migrate
from qat_jax.serve.places import Place, data_folder, slug

BATCH = 32


def migrate_pictures(
  pictures: str, encoder: str, data: str | None = None, old: str | None = None, share: float = 0.05
) -> str:
  """Migrates the collection beside pictures to another encoder, and returns what the gate found, as a line to print.

  Args:
    pictures: what is served.
    encoder: the new one.
    data: the folder of its collections, as for `qat-jax serve`.
    old: the encoder to migrate from, where there are several.
    share: of the pictures that are encoded by both.

  Raises ValueError where there is no collection to migrate from, or too few pictures.
  """
  if not 0 < share <= 1:
    raise ValueError(f"the share is {share}; give a number above 0, and at most 1")
  root = data_folder(Place(pictures, data))
  before = [path for path in sorted(root.glob(f"*/{RECORD}")) if path.parent.name != slug(encoder)]
  names = [read_record(path)["encoder"][0] for path in before]
  if old is not None:
    before = [path for path, name in zip(before, names, strict=True) if name == old]
  if len(before) != 1:
    hint = f"there are {', '.join(names)}: say which, --old NAME" if names else "serve it with its old encoder first"
    raise ValueError(f"{root} has {len(before)} collections to migrate from; {hint}")
  record = read_record(before[0])
  if record["base"] == "..":
    raise ValueError(f"{pictures} are features without their pictures; migrate where the pictures are")
  model = load_encoder(encoder, BATCH)
  old_name = record["encoder"][0]
  origin = Collection(before[0].parent, (old_name, record["encoder"][1]), record["width"])
  try:
    made = Collection(root / slug(encoder), (model.name, model.revision), model.width)
    try:
      source = _Pictures(pictures, origin, root / "pictures")
      found = migrate(origin, made, lambda ids: dict(_encoded(model, source, ids)), share)
      count = len(made)
    finally:
      made.close()
  finally:
    origin.close()
  others = sorted(((value, name) for name, value in found.shares.items() if name != found.best), reverse=True)[:3]
  beside = ", ".join(f"{name} {value:.1%}" for value, name in others)
  return (
    f"{old_name} → {encoder}: {found.best} reaches {found.shares[found.best]:.1%} of a full re-encoding "
    f"({found.measure}, {found.queries} queries that it was not fitted on; {beside}). {count:,} items can be searched, "
    f"and are encoded anew meanwhile: qat-jax serve {pictures} --encoder {encoder}"
  )


class _Pictures:
  """The pictures of a collection's items by their ids."""

  def __init__(self, pictures: str, collection: Collection, added: Path) -> None:
    self.source: Any = open_source("", "", pictures)
    self.places = {str(self.source.about(i)["id"]): i for i in range(len(self.source))}
    self.collection, self.added = collection, added

  def __getitem__(self, name: str) -> Any:
    """Returns an RGB picture; raises UnreadableImage where there is none."""
    if name in self.places:
      return decode(self.source[self.places[name]])
    item = self.collection.get(name)
    path = next(iter(self.added.glob(f"{item.content}.*")), None) if item is not None and item.content else None
    if path is None:
      raise UnreadableImage(name, "there is no picture of it")
    return decode({"id": name, "image": path.read_bytes()})


def _encoded(model: Encoder, pictures: _Pictures, ids: list[str]) -> Iterator[tuple[str, np.ndarray]]:
  """Yields ids and new features; those of pictures that cannot be read are left out."""
  for at in tqdm.tqdm(range(0, len(ids), BATCH), unit=" batches", desc="encoding a sample"):
    there = []
    for name in ids[at : at + BATCH]:
      try:
        there.append((name, pictures[name]))
      except UnreadableImage:
        continue
    if there:
      names, images = zip(*there, strict=True)
      yield from zip(names, model.images(list(images)), strict=True)
