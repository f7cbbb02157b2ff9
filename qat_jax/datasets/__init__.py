"""Sources of images and texts: random access, deterministic, one record an item.

A source is anything with `len(source)` and `source[i]` → {"id": str, "image": PIL image or encoded bytes,
"caption": str or None, "instance": str or None}.
"""

from typing import Any

from qat_jax.datasets.sources import BOX, SECOND, Source, UnreadableImage

__all__ = ["BOX", "SECOND", "Source", "UnreadableImage", "decode"]


def decode(record: dict[str, Any]) -> Any:
  """Returns a record's image as RGB, as `pictures.decode` does, which wants Pillow."""
  from qat_jax.datasets.pictures import decode as opened

  return opened(record)
