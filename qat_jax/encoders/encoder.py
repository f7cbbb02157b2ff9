"""A checkpoint as an encoder: files found, towers compiled once a batch size, batches shared out among devices.

While the devices work on one batch, threads prepare the next.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from PIL import Image

from qat_jax import stages
from qat_jax.adaptation import normalise
from qat_jax.encoders import families, open_clip, weights
from qat_jax.encoders.files import understood
from qat_jax.encoders.pixels import Patches, Pixels, read_pixels
from qat_jax.encoders.settings import Text, Vision
from qat_jax.encoders.texts import TextTokens, read_tokens
from qat_jax.encoders.tower import TextTower, VisionTower, in_parts

TOY_CLIP = pathlib.Path(__file__).parent / "toy_clip"
FILES = (
  *("config.json", "preprocessor_config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json"),
  *("special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "spiece.model", "tokenizer.model"),
  *(weights.SAFETENSORS, weights.INDEX, "model-*-of-*.safetensors", open_clip.CONFIG),
)


LONG_SIDE = "+long_side="  # in the revision of an encoder whose pictures are not prepared as its files say


class TowerEncoder:
  """A vision-language checkpoint's two towers, or an image model's one, as functions to unit features (float32, ND)."""

  def __init__(
    self,
    params: dict[str, Any],
    vision: Vision,
    text: Text | None,
    pixels: Pixels | Patches,
    tokens: TextTokens | None,
    name: str,
    revision: str,
    batch_size: int,
    devices: Sequence[jax.Device],
    dtype: str = "float32",
  ) -> None:
    self.dtype, self._devices = dtype, len(devices)
    self.params, self.name, self.revision, self.batch_size = params, name, revision, batch_size
    self.width = vision.width
    self.max_tokens = text.tokens if text else 0
    self.truncated = 0
    self._pixels, self._tokens = pixels, tokens
    self._rows = NamedSharding(_mesh(devices), PartitionSpec("device"))
    numbers = jnp.dtype(dtype)

    def image_features(params: dict, prepared: Any) -> jax.Array:
      return normalise(in_parts(VisionTower(vision, numbers), params, pixels.normalise(prepared), vision.tokens))

    def text_features(params: dict, ids_BL: jax.Array) -> jax.Array:
      assert text is not None
      return normalise(in_parts(TextTower(text, numbers), params, ids_BL, text.tokens))

    def shared(features: Callable[[dict, Any], jax.Array]) -> Callable[[dict, Any], jax.Array]:
      whole, rows = PartitionSpec(), PartitionSpec("device")
      return jax.jit(
        jax.shard_map(features, mesh=self._rows.mesh, in_specs=(whole, rows), out_specs=rows, check_vma=False)
      )

    self.image_features = shared(image_features)  # (params["vision"], a batch of what `prepare` returns) → BD
    self.text_features = shared(text_features)  # (params["text"], int32 BL) → BD

  def __reduce__(self) -> tuple:
    return _loaded_again, (self.name, self.revision, self.batch_size, self.dtype, self._devices > 1)

  def prepare(self, image: Image.Image) -> Any:
    """Returns an RGB picture as the tower takes it, small: `Pixels.prepare`; safe to call from many threads."""
    return self._pixels.prepare(image)

  def images(self, images: Sequence[Any]) -> np.ndarray:
    """Returns the features of RGB pictures, or of what `prepare` made of them (float32, unit, ND)."""

    def prepared(pool: concurrent.futures.Executor, batch: Sequence) -> Any:
      one = lambda image: self.prepare(image) if isinstance(image, Image.Image) else image
      return jax.tree.map(lambda *rows: np.stack(rows), *pool.map(one, batch))

    return self._in_batches(images, prepared, functools.partial(self.image_features, self.params["vision"]))

  def texts(self, texts: Sequence[str]) -> np.ndarray:
    """Returns the features of texts (float32, unit, ND); one longer than `max_tokens` is cut and counted.

    Raises ValueError where the checkpoint has no text tower.
    """
    tokens = self._tokens
    if tokens is None:
      raise ValueError(f"{self.name} encodes images alone; for text queries take a CLIP or a SigLIP")

    def ids(pool: concurrent.futures.Executor, batch: Sequence[str]) -> np.ndarray:
      ids_BL, cut = tokens(batch)
      self.truncated += cut
      return ids_BL

    return self._in_batches(texts, ids, functools.partial(self.text_features, self.params["text"]))

  def is_cut(self, text: str) -> bool:
    """Says whether a text is longer than `max_tokens`, so that its end is not in its feature."""
    return self._tokens is not None and self._tokens.is_cut(text)

  def _in_batches(self, items: Sequence, prepare: Callable, features: Callable) -> np.ndarray:
    """Returns the features of all items; the last batch is filled up, so that one shape is compiled."""

    def started() -> Iterator[tuple[jax.Array, int]]:
      with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(items), self.batch_size):
          batch = items[start : start + self.batch_size]
          rows = jax.tree.map(lambda x: _filled(x, self.batch_size), prepare(pool, batch))
          yield features(jax.device_put(rows, self._rows)), len(batch)

    found, waiting = [np.zeros((0, self.width), np.float32)], None
    for latest in started():
      if waiting:
        found.append(np.asarray(waiting[0])[: waiting[1]])
      waiting = latest
    if waiting:
      found.append(np.asarray(waiting[0])[: waiting[1]])
    return np.concatenate(found)


def load(
  name: str, batch_size: int, revision: str | None, dtype: str, devices: Any, long_side: int = 0
) -> TowerEncoder:
  """Returns the encoder of a hub name or folder; see `qat_jax.encoders.load_encoder`."""
  if dtype not in ("float32", "bfloat16"):
    raise ValueError(f"dtype is {dtype!r}; wanted 'float32' or 'bfloat16'")
  used = _devices(devices)
  if batch_size < 1 or batch_size % len(used):
    raise ValueError(f"batch_size is {batch_size}, no multiple of {len(used)} devices; use {_near(batch_size, used)}")
  folder, found = _found(str(name), revision)
  config = families.read_encoder_config(folder)
  family = config.model_type
  with understood(folder / (open_clip.CONFIG if family.startswith("open_clip") else "config.json")):
    vision, text = families.towers(config)
  pixels = read_pixels(folder, family, config)
  if long_side:
    pixels, vision = in_proportion(pixels, vision, long_side)
    found += f"{LONG_SIDE}{long_side}"
  if isinstance(pixels, Patches):
    vision = dataclasses.replace(vision, patches=pixels.most)
  tokens = None if text is None else read_tokens(folder, family, text.tokens, text.words, config)
  if text is not None and tokens is not None:
    tokens.check_end(text.end if text.pool == "end" else None)
  everywhere = NamedSharding(_mesh(used), PartitionSpec())
  place = lambda array: jax.device_put(array, everywhere)
  params = weights.load_weights(folder, vision, text, family, dtype, place)
  return TowerEncoder(params, vision, text, pixels, tokens, str(name), found, batch_size, used, dtype)


def in_proportion(pixels: Pixels | Patches, vision: Vision, long_side: int) -> tuple[Patches, Vision]:
  """Returns how pictures of a longer side are prepared and encoded, as timm and ILIAS do it: all bicubic."""
  if long_side < vision.patch:
    raise ValueError(f"long_side is {long_side}; wanted at least a patch, {vision.patch} pixels, or 0")
  most = (-(-long_side // vision.patch)) ** 2
  colours = (Image.Resampling.BICUBIC, pixels.scale, pixels.mean, pixels.std)
  return Patches(*colours, vision.patch, most, long_side), dataclasses.replace(vision, resampling="cubic smooth")


def _loaded_again(name: str, revision: str, batch_size: int, dtype: str, shared: bool) -> TowerEncoder:
  """Returns an encoder where a copy of it works; its weights do not travel. Raises ValueError where it is another."""
  here = name == "toy_clip" or pathlib.Path(name).is_dir()
  of, _, long_side = revision.partition(LONG_SIDE)
  encoder = load(name, batch_size, None if here else of, dtype, "all" if shared else None, int(long_side or 0))
  if encoder.revision != revision:
    raise ValueError(f"the encoder {name} is {encoder.revision} here and {revision} there; give all nodes the same")
  return encoder


def _found(name: str, revision: str | None) -> tuple[pathlib.Path, str]:
  """Returns the folder of a checkpoint and its revision: the hub's commit, or a hash of the folder's files."""
  folder = TOY_CLIP if name == "toy_clip" else pathlib.Path(name)
  if folder.is_dir():
    if revision is not None:
      raise ValueError(f"revision is {revision!r}, but {name!r} is a folder, which has one state; leave revision out")
    return folder, content_hash(folder)
  if folder.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1:
    raise FileNotFoundError(f"no folder {name!r}, and a hub name looks like openai/clip-vit-base-patch16")
  from huggingface_hub import snapshot_download

  fetch = functools.partial(snapshot_download, name, revision=revision)
  try:
    found = pathlib.Path(fetch(allow_patterns=list(FILES)))
    for other in (weights.OPEN_CLIP, weights.MSGPACK):
      if not any((found / file).exists() for file in (weights.SAFETENSORS, weights.INDEX, weights.OPEN_CLIP)):
        found = pathlib.Path(fetch(allow_patterns=[*FILES, other]))
  except (OSError, ValueError) as error:
    raise FileNotFoundError(
      f"the encoder {name!r} is no folder, and the hub did not give it ({str(error).strip().splitlines()[0]}); check "
      "the name and the revision, go online once so that it is cached, or give a local folder"
    ) from error
  return found, found.name


def content_hash(folder: pathlib.Path) -> str:
  """Returns a hash of the files of a folder that say what it encodes (blake2b, hexadecimal)."""
  import hashlib

  digest = hashlib.blake2b(digest_size=16)
  for path in sorted(folder.iterdir()):
    if path.suffix in (".json", ".txt", ".model", ".msgpack", ".safetensors") and path.is_file():
      digest.update(f"{path.name} {stages.checksum(path)}\n".encode())
  return digest.hexdigest()


def _devices(devices: Any) -> list[jax.Device]:
  if devices is None:
    return jax.local_devices()[:1]
  return jax.local_devices() if devices == "all" else list(devices)


def _near(batch_size: int, devices: list) -> str:
  more = -(-max(batch_size, 1) // len(devices)) * len(devices)
  less = more - len(devices)
  return f"{less} or {more}" if less > 0 else str(more)


def _mesh(devices: Sequence[jax.Device]) -> Mesh:
  return Mesh(np.array(devices), ("device",))


def _filled(array: np.ndarray, rows: int) -> np.ndarray:
  return np.concatenate([array, np.repeat(array[-1:], rows - len(array), axis=0)]) if len(array) < rows else array
