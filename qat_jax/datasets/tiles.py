"""Small things in large pictures: the crops of each picture of a source as items of their own.

One feature of a picture with nine things says little of any of them. A crop about as large as a thing does. Each item
has the id of its `picture` and its box in it, so that `rank(…, group="picture")` ranks pictures by their best crop.
"""

from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image

from qat_jax.datasets import BOX, Source, UnreadableImage
from qat_jax.datasets.pictures import decode
from qat_jax.datasets.sources import Derived, Kept

OVERLAP = 0.25  # of a crop's side, shared with its neighbour
MOST = 16  # crops a side
KEPT = 16  # pictures that threads share while their crops are read


def boxes(n: int) -> list[tuple[float, float, float, float]]:
  """Returns the n × n crops of a picture, row by row: left, top, right, bottom, as shares of its sides.

  >>> boxes(2)[1]
  (0.4286, 0.0, 1.0, 0.5714)
  """
  side = 1 / (n - OVERLAP * (n - 1))
  edges = [(round(i * (1 - OVERLAP) * side, 4), round(i * (1 - OVERLAP) * side + side, 4)) for i in range(n)]
  return [(left, top, right, bottom) for top, bottom in edges for left, right in edges]


class Tiles(Derived):
  """A source of crops: for each picture of another source, n × n of them for each n of `sizes`.

  Ids are those of the pictures, "#", and n, row and column: "shelf.jpg#3.0.2". The metadata of a picture is that of its
  crops. A picture is decoded once for all its crops.
  """

  def __init__(self, source: Source, sizes: Sequence[int]) -> None:
    """Raises ValueError for sizes that are not whole numbers from 1 to MOST, each once."""
    if not sizes or len(set(sizes)) != len(sizes) or not all(isinstance(n, int) and 0 < n <= MOST for n in sizes):
      raise ValueError(f"the sizes of tiles are {list(sizes)}; give whole numbers from 1 to {MOST}, each once: 1,2,3")
    super().__init__(source)
    self.tiles = [(f"{n}.{i // n}.{i % n}", box) for n in sorted(sizes) for i, box in enumerate(boxes(n))]
    self._pictures = Kept(self._picture, KEPT)

  def __len__(self) -> int:
    return len(self.source) * len(self.tiles)

  def _stamp(self, stamp: Callable[[int], dict[str, Any]], position: int) -> dict[str, Any]:
    about = stamp(position // len(self.tiles))
    return (
      self._of_tile(about, position) if "id" in about else {**about, "tile": self.tiles[position % len(self.tiles)]}
    )

  def __getitem__(self, position: int) -> dict[str, Any]:
    """Returns the record of a crop, its image an RGB picture; raises UnreadableImage where the picture is."""
    record = self._pictures(position // len(self.tiles))
    if isinstance(record, UnreadableImage):
      raise UnreadableImage(record.id, record.reason)
    image: Image.Image = record["image"]
    _, box = self.tiles[position % len(self.tiles)]
    left, top, right, bottom = (round(x * size) for x, size in zip(box, image.size * 2, strict=True))
    left, top = min(left, image.width - 1), min(top, image.height - 1)
    crop = left, top, max(right, left + 1), max(bottom, top + 1)
    return self._of_tile(record, position) | {"image": image.crop(crop)}

  def _of_tile(self, record: dict[str, Any], position: int) -> dict[str, Any]:
    name, box = self.tiles[position % len(self.tiles)]
    about = {"id": f"{record['id']}#{name}", "picture": str(record["id"])}
    return {**record, **about, **dict(zip(BOX, box, strict=True))}

  def _picture(self, place: int) -> dict[str, Any] | UnreadableImage:
    """Returns the record of a picture, decoded, or why it cannot be read."""
    try:
      record = self.source[place]
      return {**record, "image": decode(record)}
    except UnreadableImage as error:
      return error
