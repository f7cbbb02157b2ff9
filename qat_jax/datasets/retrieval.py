"""Which source fills which place of a retrieval set: train, and gallery and queries of val and test."""

from __future__ import annotations

import os
from typing import Any

TOYBOX = {
  "train": ("train", ("img", "text")),
  "val/gallery": ("val_gallery", ("img",)),
  "val/text_queries": ("val_text_queries", ("text",)),
  "val/image_queries": ("val_image_queries", ("img",)),
  "test/gallery": ("test_gallery", ("img",)),
  "test/text_queries": ("test_text_queries", ("text",)),
  "test/image_queries": ("test_image_queries", ("img",)),
}


def sources(kind: str, name: str, folder: str | os.PathLike, limit: int = 0) -> dict[str, tuple[Any, tuple[str, ...]]]:
  """Returns place → (source, kinds of feature to encode) of a data set whose files lie in `folder`.

  Kinds: `toybox` (draws itself; `name` is its config, empty for the default). `limit` keeps the first items of each
  place alone, 0 all.
  """
  if kind != "toybox":
    raise ValueError(f"the data source is {kind!r}; use toybox, or a retrieval set that is on disk (data.root)")
  from qat_jax.datasets import toybox

  found = {place: (toybox.source(split, folder, name or "default"), kinds) for place, (split, kinds) in TOYBOX.items()}
  return {place: (First(source, limit) if limit else source, kinds) for place, (source, kinds) in found.items()}


class First:
  """The first items of a source."""

  def __init__(self, source: Any, count: int) -> None:
    self.source, self.count = source, min(count, len(source))

  def __len__(self) -> int:
    return self.count

  def __getitem__(self, position: int) -> dict[str, Any]:
    return self.source[position]
