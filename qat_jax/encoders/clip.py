"""CLIP through transformers' Flax model: any hub name or local folder with a CLIP's files; no PyTorch.

Batches are padded to one size, so that each tower is compiled once.
"""

from __future__ import annotations

import logging
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from qat_jax import stages as files
from qat_jax.adaptation import normalise

TOY_CLIP = pathlib.Path(__file__).parent / "toy_clip"


class ClipEncoder:
  """A CLIP's two towers as functions to unit features (float32, ND)."""

  def __init__(
    self, model: Any, params: dict, processor: Any, tokenizer: Any, name: str, revision: str, batch_size: int
  ) -> None:
    self.name, self.revision, self.batch_size = name, revision, batch_size
    self.width: int = model.config.projection_dim
    self.max_tokens: int = model.config.text_config.max_position_embeddings
    self.truncated = 0
    self._processor, self._tokenizer = processor, tokenizer
    self._params = jax.device_put(jax.tree.map(_float32, params))

    def image_features(params: dict, pixels: jax.Array) -> jax.Array:
      return normalise(model.get_image_features(pixels, params=params))

    def text_features(params: dict, ids_NL: jax.Array, mask_NL: jax.Array) -> jax.Array:
      return normalise(model.get_text_features(ids_NL, mask_NL, params=params))

    self._image_features = jax.jit(image_features)
    self._text_features = jax.jit(text_features)

  def images(self, images: Sequence[Image.Image]) -> np.ndarray:
    """Returns the features of RGB images (float32, unit, ND)."""

    def prepare(batch: list[Image.Image]) -> tuple[np.ndarray]:
      return (self._processor(images=batch, return_tensors="np")["pixel_values"],)

    return self._in_batches(images, prepare, self._image_features)

  def texts(self, texts: Sequence[str]) -> np.ndarray:
    """Returns the features of texts (float32, unit, ND); one longer than `max_tokens` is cut and counted."""

    def prepare(batch: list[str]) -> tuple[np.ndarray, np.ndarray]:
      whole = self._tokenizer(batch, truncation=False, verbose=False)["input_ids"]
      self.truncated += sum(len(ids) > self.max_tokens for ids in whole)
      tokens = self._tokenizer(
        batch, padding="max_length", max_length=self.max_tokens, truncation=True, return_tensors="np"
      )
      return tokens["input_ids"], tokens["attention_mask"]

    return self._in_batches(texts, prepare, self._text_features)

  def _in_batches(self, items: Sequence, prepare: Callable, features: Callable) -> np.ndarray:
    found = [np.zeros((0, self.width), np.float32)]
    for start in range(0, len(items), self.batch_size):
      batch = list(items[start : start + self.batch_size])
      padded = (_padded(array, self.batch_size) for array in prepare(batch))
      found.append(np.asarray(features(self._params, *padded))[: len(batch)])
    return np.concatenate(found)


def load(name: str, batch_size: int = 256) -> ClipEncoder:
  """Returns the encoder of a hub name or folder; see `qat_jax.encoders.load_encoder`."""
  from transformers import AutoConfig, CLIPImageProcessor

  where = str(TOY_CLIP) if name == "toy_clip" else str(name)
  folder = pathlib.Path(where)
  if not folder.is_dir() and (folder.is_absolute() or where.startswith(".") or where.count("/") != 1):
    raise FileNotFoundError(f"no folder {where!r}, and a hub name looks like openai/clip-vit-base-patch16")
  try:
    config = AutoConfig.from_pretrained(where)
    if config.model_type != "clip":
      raise ValueError(f"{where!r} is a {config.model_type}, not a CLIP; give the hub name or folder of a CLIP")
    model = _model(where, config)
    processor = CLIPImageProcessor.from_pretrained(where)
    tokenizer = _tokenizer(where)
  except OSError as error:
    raise FileNotFoundError(_missing(where, folder.is_dir(), error)) from error
  revision = content_hash(folder) if folder.is_dir() else str(config._commit_hash)
  return ClipEncoder(model, model.params, processor, tokenizer, str(name), revision, batch_size)


def flax_clip() -> Any:
  """Returns transformers' FlaxCLIPModel, without its line on every load that Flax models go away in version 5."""
  from transformers import FlaxCLIPModel

  logger = logging.getLogger("transformers.modeling_flax_utils")
  if not logger.filters:
    logger.addFilter(lambda record: "classes are deprecated" not in record.getMessage())
  return FlaxCLIPModel


def _model(where: str, config: Any) -> Any:
  """Returns the Flax model with its parameters; raises ValueError where they are damaged or not whole."""

  class Clip(flax_clip()):  # type: ignore[misc]
    """Starts at NaN: drawing parameters takes ten seconds, only to replace them, and what stays NaN was absent.

    `_do_init=False` would not draw either, but then weights in PyTorch's layout cannot be read.
    """

    def init_weights(self, key: jax.Array, input_shape: tuple, params: Any = None) -> Any:
      shapes = jax.eval_shape(lambda key: super(Clip, self).init_weights(key, input_shape), key)
      return jax.tree.map(lambda x: jnp.full(x.shape, jnp.nan, x.dtype), shapes)

  try:
    model = Clip.from_pretrained(where, config=config)
  except ValueError as error:
    raise ValueError(f"the weights of {where!r} are damaged or do not fit its config.json: {error}") from error
  absent = [path for path, x in jax.tree.leaves_with_path(model.params) if np.isnan(np.ravel(x)[0])]
  if absent:
    names = ", ".join(jax.tree_util.keystr(path, simple=True, separator="/") for path in absent)
    raise ValueError(f"the weights of {where!r} lack {names}; give the folder of a whole CLIP, with both towers")
  return model


def _tokenizer(where: str) -> Any:
  """Returns the tokenizer; raises OSError where its files are missing, for which transformers has a TypeError."""
  from transformers import AutoTokenizer

  try:
    return AutoTokenizer.from_pretrained(where)
  except TypeError as error:
    raise OSError("no tokenizer.json, nor vocab.json with merges.txt") from error


def content_hash(folder: pathlib.Path) -> str:
  """Returns a hash of the files of a folder that say what it encodes (blake2b, hexadecimal)."""
  import hashlib

  digest = hashlib.blake2b(digest_size=16)
  for path in sorted(folder.iterdir()):
    if path.suffix in (".json", ".txt", ".msgpack", ".safetensors"):
      digest.update(f"{path.name} {files.checksum(path)}\n".encode())
  return digest.hexdigest()


def _float32(x: Any) -> jax.Array:
  return jnp.asarray(x, jnp.float32) if jnp.issubdtype(jnp.asarray(x).dtype, jnp.floating) else jnp.asarray(x)


def _padded(array: np.ndarray, rows: int) -> np.ndarray:
  return np.concatenate([array, np.repeat(array[-1:], rows - len(array), axis=0)])


def _missing(where: str, is_folder: bool, error: OSError) -> str:
  if is_folder:
    return f"the folder {where!r} lacks a file of a CLIP: {error}"
  return (
    f"the encoder {where!r} is no folder, and the hub did not give it ({str(error).splitlines()[0]}); check the name, "
    "go online once so that it is cached, or give a local folder"
  )
