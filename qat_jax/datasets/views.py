"""Made views: a picture as somebody else might have photographed it, so that one can learn without labels.

A view is drawn from the picture, its id and the view's number alone: the same at every run.
"""

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter

from qat_jax.datasets.pictures import decode
from qat_jax.datasets.sources import Derived, checked_position

RECIPE = 1  # counts the changes of `view`: features of another recipe are not taken for these
VIEW = "#view"  # what the id of a made view ends with, before its number
ZOOM = (0.55, 1.0)  # of the shorter side that is seen
ANGLE = 20.0  # degrees, to either side
TILT = 0.12  # of the side that is seen: how far each corner may move
LIGHT = (0.65, 1.4)  # brightness, contrast and colour, each
WHITE = 0.12  # a channel's gain, more or less
BLURRED, BLUR = 0.3, 0.012  # how often, and the greatest radius as a share of the shorter side
COVERED, COVER = 0.4, (0.1, 0.35)  # how often something lies before it, and each side of that


def view(image: Image.Image, id: str, number: int) -> Image.Image:
  """Returns a made view of a picture (RGB, of its size): crop, rotation and tilt, then light, blur, and a cover."""
  digest = hashlib.blake2b(f"{id}{VIEW}{number}".encode(), digest_size=16).digest()
  rng = np.random.default_rng(int.from_bytes(digest, "little"))
  image = image.convert("RGB")
  mean = tuple(int(x) for x in np.asarray(image.resize((1, 1), Image.Resampling.BOX))[0, 0])
  quad = _seen(image.size, rng)
  image = image.transform(image.size, Image.Transform.QUAD, quad, Image.Resampling.BICUBIC, fillcolor=mean)
  for enhancer in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
    image = enhancer(image).enhance(float(np.exp(rng.uniform(*np.log(LIGHT)))))
  gain = 1 + rng.uniform(-WHITE, WHITE, 3)
  image = Image.fromarray(np.clip(np.round(np.asarray(image) * gain), 0, 255).astype(np.uint8))
  blurred, radius, covered = rng.random() < BLURRED, rng.uniform(0, BLUR) * min(image.size), rng.random() < COVERED
  if blurred:
    image = image.filter(ImageFilter.GaussianBlur(radius))
  if covered:
    size = rng.uniform(*COVER, 2) * image.size
    corner = rng.uniform(0, 1, 2) * (image.size - size)
    shade = tuple(int(x) for x in rng.integers(0, 256, 3))
    ImageDraw.Draw(image).rectangle((*corner, *(corner + size)), fill=shade)
  return image


def _seen(size: tuple[int, int], rng: np.random.Generator) -> tuple[float, ...]:
  """Returns the four corners in the picture that a view shows: upper left, lower left, lower right, upper right."""
  width, height = size
  side = rng.uniform(*ZOOM)
  half = np.array([width, height]) * side / 2
  middle = np.array([width, height]) * (0.5 + (1 - side) * rng.uniform(-0.5, 0.5, 2))
  angle = math.radians(rng.uniform(-ANGLE, ANGLE))
  turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
  corners = np.array([[-1, -1], [-1, 1], [1, 1], [1, -1]]) + 2 * TILT * rng.uniform(-1, 1, (4, 2))
  return tuple((middle + (corners * half) @ turn.T).ravel().tolist())


class Views(Derived):
  """Items of a source, each as it is or as made views: all of them are one instance, named by the item's id."""

  def __init__(self, source: Any, numbers: Sequence[int]) -> None:
    """`numbers` are the views of each item, 0 for the picture as it is."""
    super().__init__(source)
    self.numbers = tuple(numbers)

  def __len__(self) -> int:
    return len(self.source) * len(self.numbers)

  def stamp(self, position: int) -> dict[str, Any]:
    """Returns what changes when a record does: the item's own stamp, where its source has one, and the recipe."""
    item, number = self._place(position)
    stamp = self.source.stamp(item) if hasattr(self.source, "stamp") else {}
    return {**stamp, "view": number, "recipe": RECIPE}

  def __getitem__(self, position: int) -> dict[str, Any]:
    """Returns a record with the picture, or a view of it; raises UnreadableImage where it cannot be read."""
    item, number = self._place(position)
    record = self.source[item]
    name = str(record["id"])
    if number:
      record = {**record, "id": f"{name}{VIEW}{number}", "image": view(decode(record), name, number)}
    return {**record, "instance": name, "view": number}

  def _place(self, position: int) -> tuple[int, int]:
    item, which = divmod(checked_position(position, self), len(self.numbers))
    return item, self.numbers[which]


def label_free(
  places: dict[str, tuple[Any, tuple[str, ...]]], views: int, labelled: bool
) -> dict[str, tuple[Any, tuple[str, ...]]]:
  """Returns the places of a retrieval set whose instances are pictures and their made views, `views` each.

  What is trained on are pictures and views, what is chosen on are views that look for their pictures. Where the set has
  labels they are not used for either, and captions of their instances neither; the test's image queries are then the
  real ones. Without labels they are views as well.
  """
  train, kinds = places["train"]
  chosen: dict[str, tuple[Any, tuple[str, ...]]] = {
    "train": (Views(train, range(views + 1)), ("img",) if labelled else kinds)
  }
  for split in ("val", "test"):
    pictures, _ = places[f"{split}/gallery"]
    if split == "test" and labelled and "test/image_queries" in places:
      chosen |= {place: places[place] for place in ("test/gallery", "test/image_queries")}
      continue
    chosen[f"{split}/gallery"] = (Views(pictures, [0]), ("img",))
    chosen[f"{split}/image_queries"] = (Views(pictures, [1]), ("img",))
    if not labelled and f"{split}/text_queries" in places:
      chosen[f"{split}/text_queries"] = places[f"{split}/text_queries"]
  return chosen
