"""What pictures become before they go into a tower: the pixels that its checkpoint was trained with.

Settings come from the checkpoint's files. The pixels are Pillow's, as transformers made them before it had variants
that need PyTorch: resized on bytes, then cropped; rescaling and normalising are left to the device, so that a quarter
of the bytes travel.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from qat_jax.encoders.files import read_object, understood
from qat_jax.encoders.tower import cut_patches

# A picture is resized whole, then cropped, as transformers does it. This would cost 20 GB for a strip of 100,000 × 1
# pixels and a crop of 224. So where the longer side is more than 8 times the shorter, only the part that the crop shows
# is resized. Rounding then differs by at most one grey level, and memory stays below 8 times that of a square picture.
WHOLE_SIDES = 8


@dataclasses.dataclass(frozen=True)
class Colours:
  """How a checkpoint wants its pictures: what is common to all."""

  resample: int  # Pillow's number of a filter
  scale: float
  mean: tuple[float, ...]
  std: tuple[float, ...]

  def _normalised(self, pixels: jax.Array) -> jax.Array:
    """Returns pixels, three numbers each in the last axis, as floats around 0."""
    mean_3, std_3 = (jnp.array(x).reshape(*[1] * (pixels.ndim - 1), 3) for x in (self.mean, self.std))
    return (pixels * jnp.float32(self.scale) - mean_3) / std_3


@dataclasses.dataclass(frozen=True)
class Pixels(Colours):
  """Pictures of one size."""

  crop: tuple[int, int]  # rows and columns of the result
  short_side: int = 0  # the shorter side is resized to this, the aspect ratio kept; 0: resized to `crop`
  fill: int | None = None  # the picture is fitted into `crop`, the aspect ratio kept, and this grey around it
  rounded: bool = False  # the corner of the crop as torchvision has it, half a pixel to the even side
  exact: bool = False  # resized in floats, as programs do that rescale before

  def prepare(self, image: Image.Image) -> np.ndarray:
    """Returns an RGB picture resized and cropped (uint8, or float32 where that is `exact`, PP3)."""
    rows, columns = self.crop
    if self.exact:
      bands = [np.asarray(x.convert("F").resize((columns, rows), self.resample)) for x in image.split()]
      return np.stack(bands, axis=-1)
    if self.fill is not None:
      return self._fitted(image, self.fill)
    filter = Image.Resampling(self.resample)
    if not self.short_side:
      return np.asarray(image.resize((columns, rows), filter))
    width, height = image.size
    long = int(self.short_side * max(width, height) / min(width, height))
    size = (self.short_side, long) if width <= height else (long, self.short_side)
    half = (lambda x: round(x / 2)) if self.rounded else (lambda x: x // 2)
    left, top = half(size[0] - columns), half(size[1] - rows)
    if long <= WHOLE_SIDES * self.short_side:
      return np.asarray(image.resize(size, filter).crop((left, top, left + columns, top + rows)))
    # Only the part of the picture that the crop shows is resized. `crop` adds black where the crop is larger.
    x, right = max(left, 0), min(left + columns, size[0])
    y, bottom = max(top, 0), min(top + rows, size[1])
    across, down = width / size[0], height / size[1]
    part = image.resize((right - x, bottom - y), filter, (x * across, y * down, right * across, bottom * down))
    return np.asarray(part.crop((left - x, top - y, left - x + columns, top - y + rows)))

  def _fitted(self, image: Image.Image, grey: int) -> np.ndarray:
    rows, columns = self.crop
    ratio = max(image.height / rows, image.width / columns)
    size = (max(1, round(image.width / ratio)), max(1, round(image.height / ratio)))
    whole = Image.new("RGB", (columns, rows), (grey,) * 3)
    whole.paste(image.resize(size, self.resample), ((columns - size[0]) // 2, (rows - size[1]) // 2))
    return np.asarray(whole)

  def normalise(self, pixels_BPP3: jax.Array) -> jax.Array:
    """Returns pixels as the image tower takes them (float32)."""
    return self._normalised(pixels_BPP3)


@dataclasses.dataclass(frozen=True)
class Patches(Colours):
  """Pictures that keep their aspect ratio, as patches of a grid of each one's own.

  Either as large as `most` patches allow, the sides stretched to whole patches (NaFlex), or the longer side of
  `long_side` pixels and zeros around them, as benchmarks publish their features: these take part.
  """

  patch: int
  most: int
  long_side: int = 0

  def prepare(self, image: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    """Returns the patches (uint8, LP) and the grid's rows and columns, then the picture's top, left, bottom, right."""
    if self.long_side:
      size = fitting(image.height, image.width, self.long_side)
    else:
      size = flexible(image.height, image.width, self.patch, self.most)
    grid = [-(-side // self.patch) for side in size]
    top, left = ((many * self.patch - side) // 2 for many, side in zip(grid, size, strict=True))
    whole = np.zeros((1, grid[0] * self.patch, grid[1] * self.patch, 3), np.uint8)
    whole[0, top : top + size[0], left : left + size[1]] = np.asarray(image.resize(size[::-1], self.resample))
    patch_LP = np.zeros((self.most, 3 * self.patch**2), np.uint8)
    patch_LP[: grid[0] * grid[1]] = np.asarray(cut_patches(whole, self.patch)[0][0])
    return patch_LP, np.array([*grid, top, left, top + size[0], left + size[1]], np.int32)

  def normalise(self, prepared: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Returns patches and grids as the image tower takes them: zero around the pictures."""
    patch_BLP, frame_B6 = prepared
    batch, length, _ = patch_BLP.shape
    pixel_BLPP3 = self._normalised(patch_BLP.reshape(batch, length, self.patch, self.patch, 3))
    grid_B2, place_1L, inside_11P = frame_B6[:, :2], jnp.arange(length)[None], jnp.arange(self.patch)[None, None]
    row_BLP = ((place_1L // grid_B2[:, 1:]) * self.patch)[..., None] + inside_11P
    column_BLP = ((place_1L % grid_B2[:, 1:]) * self.patch)[..., None] + inside_11P
    top, left, bottom, right = (frame_B6[:, i, None, None] for i in range(2, 6))
    shown = ((row_BLP >= top) & (row_BLP < bottom))[..., None] & ((column_BLP >= left) & (column_BLP < right))[
      :, :, None
    ]
    return jnp.where(shown[..., None], pixel_BLPP3, 0.0).reshape(batch, length, -1), grid_B2


def fitting(rows: int, columns: int, long_side: int) -> tuple[int, int]:
  """Returns the size of a picture whose longer side becomes `long_side`, the other rounded down to at least 1."""
  if rows > columns:
    return long_side, max(1, int(long_side / (rows / columns)))
  return max(1, int(long_side * (rows / columns))), long_side


@functools.lru_cache(4096)
def flexible(rows: int, columns: int, patch: int, most: int) -> tuple[int, int]:
  """Returns the largest size in whole patches, of at most `most`, that nearly keeps a picture's aspect ratio.

  The scale is found by bisection to 1e-5, as NaFlex's processor does it: other ways differ for some sizes.
  """
  sides = lambda scale: tuple(max(1, math.ceil(side * scale / patch)) for side in (rows, columns))
  low, high = 1e-6, 100.0
  while high - low >= 1e-5:
    middle = (low + high) / 2
    low, high = (middle, high) if math.prod(sides(middle)) <= most else (low, middle)
  down, across = sides(low)
  return down * patch, across * patch


def read_pixels(folder: pathlib.Path, family: str, config: Any = None) -> Pixels | Patches:
  """Returns how pictures are prepared; what the files do not say is as transformers' class for the family has it.

  transformers 5 writes the settings into processor_config.json, under `image_processor`, and prefers them to those in
  preprocessor_config.json; earlier versions wrote the second file alone. OpenCLIP's are in its own `config`.

  Raises FileNotFoundError where both are missing, ValueError where one asks for what is not done here.
  """
  if family.startswith("open_clip"):
    with understood(folder / "open_clip_config.json"):
      return _of_open_clip(config.preprocess)
  path, given = folder / "processor_config.json", None
  if path.is_file():
    given = read_object(path).get("image_processor")
  if not isinstance(given, dict):
    path = folder / "preprocessor_config.json"
    if not path.is_file():
      raise FileNotFoundError(
        f"the folder {str(folder)!r} lacks {path.name} (processor_config.json with image_processor will do); give the "
        "folder of a whole checkpoint"
      )
    given = read_object(path)
    if isinstance(given.get("image_processor"), dict):
      given = given["image_processor"]
  given = {key: value for key, value in given.items() if value is not None}
  with understood(path):
    pixels = _pixels({**_defaults(family), **given}, family)
    _check_sizes(pixels, config)
  return pixels


def _pixels(settings: dict[str, Any], family: str) -> Pixels | Patches:
  off = [key for key in ("do_resize", "do_rescale", "do_normalize") if not settings.get(key, True)]
  if off:
    raise ValueError(f"it says {off[0]} is false; only pictures that are resized, rescaled and normalised are known")
  colours = (
    _filter(settings["resample"]),
    _numbers(settings, "rescale_factor", 1, above=0.0)[0],
    *(_numbers(settings, "image_mean"), _numbers(settings, "image_std", above=0.0)),
  )
  if family == "siglip2":
    return Patches(*colours, _side(settings["patch_size"]), _side(settings["max_num_patches"]))
  size, cropped = settings["size"], settings.get("do_center_crop", False)
  if family in ("clip", "metaclip_2", "dinov2", "dinov2_with_registers") and isinstance(size, int | float):
    size = {"shortest_edge": size}
  short = _side(size["shortest_edge"]) if isinstance(size, dict) and "shortest_edge" in size else 0
  crop = settings["crop_size"] if cropped else size
  if (short and not cropped) or (not short and _sides(crop) != _sides(size)):
    raise ValueError(f"size is {size} and do_center_crop {cropped}; wanted a short side and a crop, or neither")
  return Pixels(*colours, _sides(crop), short, exact=family == "dinov3_vit")


def _check_sizes(pixels: Pixels | Patches, config: Any) -> None:
  """Raises ValueError where pictures are prepared for another tower; DINO's are trained for pictures of any size."""
  part = getattr(config, "vision_config", None)
  if part is None:
    return
  name, got, wanted = "pictures", getattr(pixels, "crop", None), (getattr(part, "image_size", 0),) * 2
  if isinstance(pixels, Patches):
    name, got, wanted = "patches", (pixels.patch,) * 2, (part.patch_size,) * 2
  if got != wanted:
    raise ValueError(f"{name} get {got} pixels, and the tower in config.json takes {wanted}")


def _filter(value: Any) -> int:
  """Returns Pillow's number of a filter, which may be written as its name."""
  names = {one.name.lower(): one.value for one in Image.Resampling}
  return Image.Resampling(names.get(str(value).rpartition(".")[2].lower(), value)).value


def _numbers(settings: dict[str, Any], name: str, count: int = 3, above: float = -math.inf) -> tuple[float, ...]:
  """Returns `count` finite numbers of a setting, of which one may stand for all."""
  value = settings[name]
  found = tuple(float(x) for x in value) if isinstance(value, list | tuple) else (float(value),) * count
  if len(found) != count or not all(above < x < math.inf for x in found):
    raise ValueError(f"{name} is {value}; wanted {count} finite numbers{'' if math.isinf(above) else ' above 0'}")
  return found


def _side(value: Any) -> int:
  if int(value) != float(value) or int(value) < 1:
    raise ValueError(f"{value!r} is no side; wanted whole pixels, at least 1")
  return int(value)


def _sides(value: Any) -> tuple[int, int]:
  """Returns rows and columns of a size, which may be one number, two, or named."""
  if isinstance(value, dict) and not {"height", "width"} <= value.keys():
    raise ValueError(f"{value} is no size; wanted pixels, or height and width")
  pair = (value["height"], value["width"]) if isinstance(value, dict) else value
  rows, columns = pair if isinstance(pair, list | tuple) else (pair, pair)
  return _side(rows), _side(columns)


def _defaults(family: str) -> dict[str, Any]:
  """Returns what holds where preprocessor_config.json is silent, as files of before 2023 often are."""
  shared = {"rescale_factor": 1 / 255, "resample": 3}
  square = {"size": {"height": 224, "width": 224}}
  if family in ("siglip", "siglip2"):
    flexible = {"resample": 2, "patch_size": 16, "max_num_patches": 256} if family == "siglip2" else {}
    return {**shared, **square, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, **flexible}
  if family == "dinov3_vit":
    imagenet = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    return {**shared, **square, **imagenet, "resample": 2}
  return {**shared, **CLIP_COLOURS, "size": 224, "crop_size": 224, "do_center_crop": True}


CLIP_COLOURS = {
  "image_mean": [0.48145466, 0.4578275, 0.40821073],
  "image_std": [0.26862954, 0.26130258, 0.27577711],
}


def _of_open_clip(settings: dict[str, Any]) -> Pixels:
  """Returns how OpenCLIP prepares pictures for evaluation."""
  given = {key: value for key, value in settings.items() if value is not None}
  how, kernel = given.get("resize_mode", "shortest"), given.get("interpolation", "bicubic")
  (rows, columns), known = _sides(given["size"]), {"bicubic": 3, "random": 3, "bilinear": 2}
  if how not in ("shortest", "longest", "squash") or kernel not in known or (how == "shortest" and rows != columns):
    raise ValueError(
      f"preprocess_cfg has resize_mode {how!r}, interpolation {kernel!r}, size {given['size']}; wanted shortest (of a "
      "square), longest or squash, and bicubic or bilinear"
    )
  given = {"mean": CLIP_COLOURS["image_mean"], "std": CLIP_COLOURS["image_std"], **given}
  mean, std = _numbers(given, "mean"), _numbers(given, "std", above=0.0)
  fill = given.get("fill_color", 0) if how == "longest" else None
  short = rows if how == "shortest" else 0
  return Pixels(known[kernel], 1 / 255, mean, std, (rows, columns), short, fill=fill, rounded=True)
