"""What goes into the towers: a picture as the pixels that its checkpoint was trained with, a text as its tokens.

Settings and tokenizers come from transformers. The pixels are Pillow's, as transformers made them before it had
variants that need PyTorch: resized on bytes, then cropped; rescaling and normalising are left to the device, so that a
quarter of the bytes travel.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from qat_jax.encoders.files import read_object, refuse_pointer

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
  """Returns how pictures are prepared; what the files do not say is as transformers' class for the family has it.

  transformers 5 writes the settings into processor_config.json, under `image_processor`, and prefers them to those in
  preprocessor_config.json; earlier versions wrote the second file alone.

  Raises FileNotFoundError where both are missing, ValueError where one asks for what is not done here.
  """
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
  try:
    return _pixels({**_defaults(family), **given}, path)
  except (KeyError, TypeError, AttributeError) as error:
    raise ValueError(f"{path} has settings that are not understood ({error!r}); fetch it again") from error


def _pixels(settings: dict[str, Any], path: pathlib.Path) -> Pixels:
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
  """A checkpoint's tokenizer: texts → ids padded to the text tower's length.

  Args:
    tokenizer: transformers' own, with a padding token.
    length: how many tokens the text tower takes.
    words: how many ids the text tower knows.
    lower_case: whether texts are made lower-case first.
    where: the folder, for errors.
  """

  def __init__(self, tokenizer: Any, length: int, words: int, lower_case: bool, where: str) -> None:
    self._tokenizer, self.length, self._lower_case = tokenizer, length, lower_case
    self._words, self._where = words, where

  def __call__(self, texts: Sequence[str]) -> tuple[np.ndarray, int]:
    """Returns the ids (int32, BL) and how many texts were longer than the tower takes and cut."""
    texts = [text.lower() for text in texts] if self._lower_case else list(texts)
    whole = self._tokenizer(texts, truncation=False, verbose=False)["input_ids"]
    cut = [number for number, ids in enumerate(whole) if len(ids) > self.length]
    padded = self._tokenizer(texts, padding="max_length", max_length=self.length, truncation=True, return_tensors="np")
    ids_BL = padded["input_ids"].astype(np.int32)
    if ids_BL.max(initial=0) >= self._words:  # JAX would take the last word instead
      raise ValueError(
        f"the tokenizer of {self._where!r} gives the id {ids_BL.max()}, and its text tower knows {self._words}; take "
        "the tokenizer and the weights from one checkpoint"
      )
    return ids_BL, len(cut)

  def is_cut(self, text: str) -> bool:
    """Says whether a text is longer than the tower takes."""
    text = text.lower() if self._lower_case else text
    return len(self._tokenizer([text], truncation=False, verbose=False)["input_ids"][0]) > self.length


def read_tokens(folder: pathlib.Path, family: str, length: int, words: int) -> Tokens:
  """Returns the tokenizer of a checkpoint, tried on one text.

  Args:
    folder: of the checkpoint.
    family: such as "clip".
    length: how many tokens the text tower takes.
    words: how many ids it knows.

  Raises:
    FileNotFoundError: the tokenizer's files are missing or cannot be read.
    ValueError: a file is a Git LFS pointer or no JSON, or no token pads texts.
  """
  settings = _settings(folder)
  # SigLIPs were trained on lower-cased text, and not every tokenizer of theirs sees to it.
  lower_case = family == "siglip"
  try:
    tokenizer = _tokenizer(folder, settings)
  except Exception as error:  # for files that are missing or broken transformers has any kind, TypeError among them
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    raise FileNotFoundError(
      f"the folder {str(folder)!r} has no tokenizer that can be read ({reason}); wanted tokenizer.json, or vocab.json "
      "with merges.txt: copy them from the checkpoint"
    ) from error
  if tokenizer.pad_token is None:
    tokenizer.pad_token = _padding(folder, family, tokenizer, settings)
  tokens = Tokens(tokenizer, length, words, lower_case, str(folder))
  tokens(["a"])  # so that a file that does not fit is told now, not at the first text
  return tokens


def _settings(folder: pathlib.Path) -> dict[str, str]:
  """Returns the padding and end tokens that the tokenizer's files name, of which the first that names one counts.

  A token is written as its text or as an object with its text as `content`.
  """
  whole = (folder / "tokenizer.json").is_file()
  for name in ("tokenizer.json",) if whole else ("vocab.json", "merges.txt", "spiece.model", "tokenizer.model"):
    if (folder / name).is_file():
      refuse_pointer(folder / name)
  tokens: dict[str, str] = {}
  for path in (folder / "tokenizer_config.json", folder / "special_tokens_map.json"):
    known = read_object(path) if path.is_file() else {}
    for key in ("pad_token", "eos_token"):
      token = known.get(key)
      token = token.get("content") if isinstance(token, dict) else token
      if isinstance(token, str) and token:
        tokens.setdefault(key, token)
  return tokens


def _padding(folder: pathlib.Path, family: str, tokenizer: Any, settings: dict[str, str]) -> str:
  """Returns the token that fills up short texts, where the tokenizer's own settings name none.

  It is that of tokenizer.json's padding, or what transformers' class for the family takes: the end of the text, and
  <pad> in Gemma's vocabulary, which SigLIP 2 has. Raises ValueError where the vocabulary has none of them.
  """
  words, path = tokenizer.get_vocab(), folder / "tokenizer.json"
  padding = read_object(path).get("padding") if path.is_file() else None
  candidates = [padding.get("pad_token")] if isinstance(padding, dict) else []
  if family == "siglip":
    candidates += ["<pad>", "<eos>"] if "<bos>" in words else ["</s>"]
  candidates += ["<|endoftext|>", settings.get("eos_token")]
  token = next((token for token in candidates if token and token in words), None)
  if token is None:
    raise ValueError(
      f"the tokenizer in {str(folder)!r} names no token that pads texts; write it as pad_token in tokenizer_config.json"
    )
  return token


def _tokenizer(folder: pathlib.Path, settings: dict[str, str]) -> Any:
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
  return PreTrainedTokenizerFast(tokenizer_file=str(path), **settings)
