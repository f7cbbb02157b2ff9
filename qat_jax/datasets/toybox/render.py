"""Draws a toy as a photograph of it might look: pose, light, blur, an occluder, a background, clutter.

A view is a pure function of (toy, view number). Shapes are drawn as polygons at twice the size and reduced.
"""

import io
import zlib

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from qat_jax.datasets.toybox.objects import Toy, families

SIZE = 64
CANVAS = 2 * SIZE
LIGHTNESS = (70.0, 220.0)  # of the ground, 0 to 255, before light falls on it
RGB = {
  "red": (208, 44, 44),
  "orange": (240, 138, 32),
  "yellow": (242, 214, 60),
  "green": (52, 152, 72),
  "blue": (48, 92, 206),
  "purple": (132, 62, 172),
  "pink": (242, 150, 190),
  "brown": (116, 74, 44),
  "white": (250, 250, 250),
  "black": (18, 18, 18),
}
PLACES = {"above": (0.0, -1.0), "below": (0.0, 1.0), "left": (-1.0, 0.0), "right": (1.0, 0.0)}
MAIN, SIDE, MARK = 0.62, 0.34, 0.2  # half sizes of the parts; the whole toy reaches about one unit from its middle


def render(toy: Toy, view: int, lightness: tuple[float, float] = LIGHTNESS) -> Image.Image:
  """Returns one view of a toy (RGB, 64×64); `lightness` is the range that the ground's is drawn from."""
  rng = _rng(toy, view)  # draws the ground and the count of clutter first, as `scene` does
  cells = np.clip(_ground(rng, lightness), 0, 255).astype(np.uint8)
  image = Image.fromarray(cells).resize((CANVAS, CANVAS), Image.Resampling.BILINEAR)
  draw = ImageDraw.Draw(image)
  for _ in range(_clutter_count(rng)):
    _clutter(draw, rng)
  matrix, middle = _pose(toy, rng)
  _toy(image, toy, matrix, middle)
  if rng.random() < 0.3:
    _occluder(draw, middle, rng)
  image = image.reduce(2)
  if (sigma := rng.uniform(-0.6, 0.8)) > 0.2:
    image = image.filter(ImageFilter.GaussianBlur(sigma))
  return _light(image, rng)


def drawn(name: str) -> Image.Image:
  """Returns the picture of an id of the toybox, such as family0007_2_0: its family, its member, its view."""
  family, member, view = map(int, name.removeprefix("family").split("_"))
  return render(families()[family][member], view)


def scene(toy: Toy, view: int) -> tuple[np.ndarray, int]:
  """Returns what lies behind a view's toy: the ground's mean colour (3, 0 to 255), and the count of clutter."""
  rng = _rng(toy, view)
  ground = _ground(rng)
  return np.clip(ground, 0, 255).mean((0, 1)), _clutter_count(rng)


def as_jpeg(image: Image.Image) -> bytes:
  """Returns the image as JPEG."""
  buffer = io.BytesIO()
  image.save(buffer, "JPEG", quality=90)
  return buffer.getvalue()


def _circle(corners: int = 24) -> np.ndarray:
  angle = np.linspace(0, 2 * np.pi, corners, endpoint=False)
  return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def _star() -> np.ndarray:
  angle = np.arange(10) * np.pi / 5 - np.pi / 2
  return np.stack([np.cos(angle), np.sin(angle)], axis=1) * np.where(np.arange(10) % 2, 0.45, 1.1)[:, None]


def _heart() -> np.ndarray:
  t = np.linspace(0, 2 * np.pi, 28, endpoint=False)
  x = 16 * np.sin(t) ** 3
  y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
  return np.stack([x, y + 1], axis=1) / 16


def _moon() -> np.ndarray:
  outer = np.linspace(0.25 * np.pi, 1.75 * np.pi, 20)
  inner = np.linspace(1.65 * np.pi, 0.35 * np.pi, 14)
  far = np.stack([np.cos(outer), np.sin(outer)], axis=1)
  near = np.stack([0.42 + 0.75 * np.cos(inner), 0.75 * np.sin(inner)], axis=1)
  return np.concatenate([far, near]) + [0.15, 0]


ARM = 0.36
SHAPES = {
  "circle": _circle(),
  "square": np.array([(-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)]),
  "triangle": np.array([(0, -1.0), (1.0, 0.8), (-1.0, 0.8)]),
  "star": _star(),
  "cross": np.array(
    [(-ARM, -1), (ARM, -1), (ARM, -ARM), (1, -ARM), (1, ARM), (ARM, ARM)]
    + [(ARM, 1), (-ARM, 1), (-ARM, ARM), (-1, ARM), (-1, -ARM), (-ARM, -ARM)]
  ),
  "heart": _heart(),
  "moon": _moon(),
  "arrow": np.array([(-1, -0.4), (0.1, -0.4), (0.1, -0.95), (1.1, 0), (0.1, 0.95), (0.1, 0.4), (-1, 0.4)]),
  "dot": _circle(16),
  "bar": np.array([(-1.4, -0.45), (1.4, -0.45), (1.4, 0.45), (-1.4, 0.45)]),
  "ring": _circle(16) * 1.2,
  "wedge": np.array([(0, -1.2), (1.2, 0.9), (-1.2, 0.9)]),
}


def _points(outline: np.ndarray) -> list[tuple[float, float]]:
  return [tuple(point) for point in outline.tolist()]


def _rng(toy: Toy, view: int) -> np.random.Generator:
  return np.random.Generator(np.random.Philox(key=[zlib.crc32(toy.name.encode()), view]))


def _ground(rng: np.random.Generator, lightness: tuple[float, float] = LIGHTNESS) -> np.ndarray:
  """Returns the colours (4, 4, 3) of what is behind a toy, before they are cut to 0 to 255."""
  base = rng.uniform(*lightness) + rng.normal(0, 20, 3)
  return base + rng.normal(0, 20, (4, 4, 3))


def _clutter_count(rng: np.random.Generator) -> int:
  return int(rng.integers(0, 5))


def _clutter(draw: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
  colour = tuple(int(c) for c in rng.integers(20, 235, 3))
  x, y = rng.uniform(0, CANVAS, 2)
  if rng.random() < 0.5:
    dx, dy = rng.normal(0, 30, 2)
    draw.line([(x, y), (x + dx, y + dy)], fill=colour, width=int(rng.integers(2, 6)))
  else:
    r = rng.uniform(3, 9)
    draw.ellipse([x - r, y - r, x + r, y + r], fill=colour)


def _pose(toy: Toy, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
  """Returns the 2×2 matrix from the toy's units to canvas pixels, and where the toy's middle goes."""
  angle = np.radians(rng.uniform(-8, 8))
  rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
  stretch = np.diag([1.0, rng.uniform(0.94, 1.06)])
  matrix = rotation @ stretch * rng.uniform(49, 56)
  # The side part pulls the centre of the whole toy towards it.
  middle = CANVAS / 2 + rng.uniform(-4, 4, 2) - matrix @ (0.33 * np.array(PLACES[toy.side_place]))
  return matrix, middle


def _toy(image: Image.Image, toy: Toy, matrix: np.ndarray, middle: np.ndarray) -> None:
  draw = ImageDraw.Draw(image)
  side = SHAPES[toy.side_kind] * SIDE + np.array(PLACES[toy.side_place]) * (MAIN + 0.8 * SIDE)
  main = SHAPES[toy.kind] * MAIN
  draw.polygon(_points(side @ matrix.T + middle), fill=RGB[toy.side_colour], outline=(30, 30, 30))
  outline = _points(main @ matrix.T + middle)
  draw.polygon(outline, fill=RGB[toy.colour], outline=(30, 30, 30))
  if toy.texture != "plain":
    _texture(image, toy, outline, matrix, middle)
  mark = _points(SHAPES[toy.mark_kind] * MARK @ matrix.T + middle)
  if toy.mark_kind == "ring":
    draw.polygon(mark, fill=None, outline=RGB[toy.mark_colour], width=5)
  else:
    draw.polygon(mark, fill=RGB[toy.mark_colour])


def _texture(image: Image.Image, toy: Toy, outline: list, matrix: np.ndarray, middle: np.ndarray) -> None:
  """Draws the pattern of the main shape in a darker or lighter shade of its colour, clipped to the shape."""
  colour = RGB[toy.colour]
  shade = tuple(int(c * 0.45) for c in colour)
  if toy.texture == "framed":
    ImageDraw.Draw(image).polygon(outline, outline=shade, width=8)
    return
  pattern = Image.new("1", image.size)
  draw = ImageDraw.Draw(pattern)
  steps = np.arange(-0.63, 0.64, 0.25)
  if toy.texture == "striped":
    for y in steps:
      draw.line(_points(np.array([(-0.8, y), (0.8, y)]) @ matrix.T + middle), fill=1, width=5)
  for row, y in enumerate(steps if toy.texture in ("dotted", "checked") else ()):
    for column, x in enumerate(steps):
      if toy.texture == "dotted":
        px, py = matrix @ (x, y) + middle
        draw.ellipse([px - 3, py - 3, px + 3, py + 3], fill=1)
      elif (row + column) % 2:
        cell = np.array([(x, y), (x + 0.25, y), (x + 0.25, y + 0.25), (x, y + 0.25)])
        draw.polygon(_points(cell @ matrix.T + middle), fill=1)
  inside = Image.new("1", image.size)
  ImageDraw.Draw(inside).polygon(outline, fill=1)
  image.paste(shade, mask=ImageChops.logical_and(pattern, inside))


def _occluder(draw: ImageDraw.ImageDraw, middle: np.ndarray, rng: np.random.Generator) -> None:
  """Covers a piece of the toy's rim with a grey bar or disc."""
  angle = rng.uniform(0, 2 * np.pi)
  at = middle + np.array([np.cos(angle), np.sin(angle)]) * rng.uniform(36, 54)
  colour = (int(rng.integers(40, 200)),) * 3
  if rng.random() < 0.5:
    r = rng.uniform(6, 13)
    draw.ellipse([at[0] - r, at[1] - r, at[0] + r, at[1] + r], fill=colour)
  else:
    along = np.array([-np.sin(angle), np.cos(angle)]) * 60
    draw.line(_points(np.stack([at - along, at + along])), fill=colour, width=int(rng.integers(5, 12)))


GRID = np.linspace(-1, 1, SIZE, dtype=np.float32)


def _light(image: Image.Image, rng: np.random.Generator) -> Image.Image:
  """Brightens or dims the image along a direction, tints it, and adds sensor noise."""
  slope = rng.normal(0, 0.14, 2).astype(np.float32)
  tint = rng.uniform(0.6, 1.15) * rng.uniform(0.9, 1.1, 3).astype(np.float32)
  gain = 1 + slope[0] * GRID[:, None] + slope[1] * GRID[None, :]
  pixels = np.asarray(image, np.float32) * gain[..., None] * tint
  pixels += rng.standard_normal(pixels.shape, np.float32) * np.float32(rng.uniform(1, 6))
  return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
