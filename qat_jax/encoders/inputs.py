"""What goes into the towers: a picture as the pixels that its checkpoint was trained with, a text as its tokens.

Settings and tokenizers come from transformers. The pixels are Pillow's, as transformers made them before it had
variants that need PyTorch: resized on bytes, then cropped; rescaling and normalising are left to the device, so that a
quarter of the bytes travel.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

# A picture is resized whole, then cropped, as transformers does it. This would cost 20 GB for a strip of 100,000 × 1
# pixels and a crop of 224. So where the longer side is more than 8 times the shorter, only the part that the crop shows
# is resized. Rounding then differs by at most one grey level, and memory stays below 8 times that of a square picture.
WHOLE_SIDES = 8


@dataclasses.dataclass(frozen=True)
class Pixels:
  """How a checkpoint wants its pictures."""

  short_side: int  # the shorter side is resized to this, the aspect ratio kept; 0: resized to `crop`, not kept
  crop: tuple[int, int]  # rows and columns of the result
  resample: int  # Pillow's number of a filter
  scale: float
  mean: tuple[float, ...]
  std: tuple[float, ...]

  def prepare(self, image: Image.Image) -> np.ndarray:
    """Returns an RGB picture resized and cropped (uint8, PP3)."""
    rows, columns = self.crop
    filter = Image.Resampling(self.resample)
    if not self.short_side:
      return np.asarray(image.resize((columns, rows), filter))
    width, height = image.size
    long = int(self.short_side * max(width, height) / min(width, height))
    size = (self.short_side, long) if width <= height else (long, self.short_side)
    left, top = (size[0] - columns) // 2, (size[1] - rows) // 2
    if long <= WHOLE_SIDES * self.short_side:
      return np.asarray(image.resize(size, filter).crop((left, top, left + columns, top + rows)))
    # Only the part of the picture that the crop shows is resized. `crop` adds black where the crop is larger.
    x, right = max(left, 0), min(left + columns, size[0])
    y, bottom = max(top, 0), min(top + rows, size[1])
    across, down = width / size[0], height / size[1]
    part = image.resize((right - x, bottom - y), filter, (x * across, y * down, right * across, bottom * down))
    return np.asarray(part.crop((left - x, top - y, left - x + columns, top - y + rows)))

  def normalise(self, pixels_BPP3: jax.Array) -> jax.Array:
    """Returns uint8 pixels as the image tower takes them (float32)."""
    mean_3, std_3 = jnp.array(self.mean), jnp.array(self.std)
    return (pixels_BPP3 * jnp.float32(self.scale) - mean_3[None, None, None]) / std_3[None, None, None]


def read_pixels(folder: pathlib.Path, family: str) -> Pixels:
  """Returns the settings in preprocessor_config.json, what is not there as transformers' class for the family has it.

  Raises FileNotFoundError where the file is missing, ValueError where it asks for what is not done here.
  """
  path = folder / "preprocessor_config.json"
  if not path.is_file():
    raise FileNotFoundError(f"the folder {str(folder)!r} lacks {path.name}; give the folder of a whole checkpoint")
  try:
    given = json.loads(path.read_text(encoding="utf-8"))
  except ValueError as error:
    raise ValueError(f"{path} is no JSON ({error}); fetch it again") from error
  given = {key: value for key, value in given.items() if value is not None}
  settings = {**_defaults(family), **given}
  size, crop = settings["size"], settings.get("crop_size")
  off = [key for key in ("do_resize", "do_rescale", "do_normalize") if not settings.get(key, True)]
  if off:
    raise ValueError(
      f"{path} says {off[0]} is false; only pictures that are resized, rescaled and normalised are known"
    )
  cropped = settings.get("do_center_crop", False)
  square = lambda x: (x, x) if isinstance(x, int) else (x["height"], x["width"])
  short = size if isinstance(size, int) else size.get("shortest_edge", 0)
  if cropped != bool(short) or (isinstance(size, int) and not cropped):
    raise ValueError(f"{path} has size {size} and do_center_crop {cropped}; wanted a short side and a crop, or neither")
  return Pixels(
    short if cropped else 0,
    square(crop if cropped else size),
    int(settings["resample"]),
    float(settings["rescale_factor"]),
    tuple(settings["image_mean"]),
    tuple(settings["image_std"]),
  )


def _defaults(family: str) -> dict[str, Any]:
  """Returns what holds where preprocessor_config.json is silent, as files of before 2023 often are."""
  shared = {"rescale_factor": 1 / 255, "resample": 3}
  if family == "siglip":
    return {**shared, "size": {"height": 224, "width": 224}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
  clip = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
  return {**shared, **clip, "size": 224, "crop_size": 224, "do_center_crop": True}


class Tokens:
  """A checkpoint's tokenizer: texts → ids padded to the text tower's length."""

  def __init__(self, tokenizer: Any, length: int, lower_case: bool) -> None:
    self._tokenizer, self.length, self._lower_case = tokenizer, length, lower_case

  def __call__(self, texts: Sequence[str]) -> tuple[np.ndarray, int]:
    """Returns the ids (int32, BL) and how many texts were longer than the tower takes and cut."""
    texts = [text.lower() for text in texts] if self._lower_case else list(texts)
    whole = self._tokenizer(texts, truncation=False, verbose=False)["input_ids"]
    cut = [number for number, ids in enumerate(whole) if len(ids) > self.length]
    padded = self._tokenizer(texts, padding="max_length", max_length=self.length, truncation=True, return_tensors="np")
    return padded["input_ids"].astype(np.int32), len(cut)

  def is_cut(self, text: str) -> bool:
    """Says whether a text is longer than the tower takes."""
    text = text.lower() if self._lower_case else text
    return len(self._tokenizer([text], truncation=False, verbose=False)["input_ids"][0]) > self.length


def read_tokens(folder: pathlib.Path, family: str, length: int) -> Tokens:
  """Returns the tokenizer of a checkpoint; raises FileNotFoundError where its files are missing."""
  # SigLIPs were trained on lower-cased text, and not every tokenizer of theirs sees to it.
  lower_case = family == "siglip"
  try:
    return Tokens(_tokenizer(folder), length, lower_case)
  except Exception as error:  # for files that are missing or broken transformers has any kind, TypeError among them
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    raise FileNotFoundError(
      f"the folder {str(folder)!r} has no tokenizer that can be read ({reason}); wanted tokenizer.json, or vocab.json "
      "with merges.txt: copy them from the checkpoint"
    ) from error


def _tokenizer(folder: pathlib.Path) -> Any:
  """Returns transformers' tokenizer; tokenizer.json as it lies, whatever its class in this version would change.

  The class that a checkpoint names may want SentencePiece, or rebuild the tokenizer by rules of its own.
  """
  from transformers import AutoTokenizer, PreTrainedTokenizerFast

  path = folder / "tokenizer.json"
  if not path.is_file():
    files = ("vocab.json", "merges.txt", "spiece.model", "tokenizer.model")
    if not any((folder / name).is_file() for name in files):  # of which transformers 5 makes a tokenizer without words
      raise FileNotFoundError(f"neither tokenizer.json nor one of {', '.join(files)}")
    return AutoTokenizer.from_pretrained(folder)
  settings = folder / "tokenizer_config.json"
  known = json.loads(settings.read_text(encoding="utf-8")) if settings.is_file() else {}
  word = lambda token: token["content"] if isinstance(token, dict) else token
  special = {key: word(known[key]) for key in ("pad_token", "eos_token") if known.get(key)}
  return PreTrainedTokenizerFast(tokenizer_file=str(path), **special)
