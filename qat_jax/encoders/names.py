"""What the towers' parameters are called in the checkpoints of each family, and how they lie there.

PyTorch's layout: a dense weight is (out, in), a convolution (out, in, height, width). A path is that of our parameter
tree, such as ("vision", "block_0", "mlp", "up", "kernel").
"""

from __future__ import annotations

import re
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict

from qat_jax.encoders.tower import Text, TextTower, Vision, VisionTower

Path = tuple[str, ...]

_BLOCK = {
  "norm1": ("layer_norm1",),
  "norm2": ("layer_norm2",),
  "attention/qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
  "attention/out": ("self_attn.out_proj",),
  "mlp/up": ("mlp.fc1",),
  "mlp/down": ("mlp.fc2",),
}
_DINO_BLOCK = {
  "norm1": ("norm1",),
  "norm2": ("norm2",),
  "attention/qkv": ("attention.attention.query", "attention.attention.key", "attention.attention.value"),
  "attention/out": ("attention.output.dense",),
  "mlp/up": ("mlp.fc1",),
  "mlp/down": ("mlp.fc2",),
}
_SWIGLU = {"mlp/up": ("mlp.weights_in",), "mlp/down": ("mlp.weights_out",)}
# Parameters that stand alone have their whole name here, modules the name before ".weight" and ".bias".
_SHARED = {
  "vision/patches": "vision_model.embeddings.patch_embedding",
  "vision/position": "vision_model.embeddings.position_embedding.weight",
  "vision/post_norm": "vision_model.post_layernorm",
  "text/words": "text_model.embeddings.token_embedding.weight",
  "text/position": "text_model.embeddings.position_embedding.weight",
  "text/post_norm": "text_model.final_layer_norm",
  "logit_scale": "logit_scale",
  "logit_bias": "logit_bias",
}
_NAMES = {
  "clip": {
    **_SHARED,
    "vision/class_token": "vision_model.embeddings.class_embedding",
    "vision/pre_norm": "vision_model.pre_layrnorm",  # so spelt
    "vision/projection": "visual_projection",
    "text/projection": "text_projection",
  },
  "siglip": {
    **_SHARED,
    "vision/probe": "vision_model.head.probe",
    "vision/pool/out": "vision_model.head.attention.out_proj",
    "vision/pool_norm": "vision_model.head.layernorm",
    "vision/pool_mlp/up": "vision_model.head.mlp.fc1",
    "vision/pool_mlp/down": "vision_model.head.mlp.fc2",
    "text/projection": "text_model.head",
  },
  "dinov2": {
    "vision/patches": "embeddings.patch_embeddings.projection",
    "vision/position": "embeddings.position_embeddings",
    "vision/class_token": "embeddings.cls_token",
    "vision/registers": "embeddings.register_tokens",
    "vision/post_norm": "layernorm",
  },
}
# In files, but no part of what is computed.
PASSED_OVER = re.compile(r"(.*\.position_ids|embeddings\.mask_token)$")


def shapes(vision: Vision, text: Text | None, family: str) -> dict[Path, jax.ShapeDtypeStruct]:
  """Returns the shape of every parameter, by path: of both towers, and of the logits where the family has them."""
  pixels = jax.ShapeDtypeStruct((1, vision.grid * vision.patch, vision.grid * vision.patch, 3), np.float32)
  tree: dict[str, Any] = {"vision": _shapes(VisionTower(vision), pixels)}
  if text is not None:
    tree["text"] = _shapes(TextTower(text), jax.ShapeDtypeStruct((1, text.tokens), np.int32))
    tree["logit_scale"] = jax.ShapeDtypeStruct((), np.float32)
  if family == "siglip":
    tree["logit_bias"] = jax.ShapeDtypeStruct((), np.float32)
  return flatten_dict(tree)


def _shapes(tower: nn.Module, example: jax.ShapeDtypeStruct) -> Any:
  return jax.eval_shape(tower.init, jax.random.key(0), example)["params"]


def names(path: Path, family: str, swiglu: bool = False) -> tuple[str, ...]:
  """Returns what a parameter is called in a checkpoint: one name, or those whose rows are stacked in ours."""
  family = "dinov2" if family.startswith("dinov2") else family
  table, last = _NAMES[family], {"kernel": "weight", "scale": "weight"}.get(path[-1], path[-1])
  whole, module = "/".join(path), "/".join(path[:-1])
  if whole in table:
    return (table[whole],)
  if module in table:
    return (f"{table[module]}.{last}",)
  if module == "vision/pool/qkv":
    return (f"vision_model.head.attention.in_proj_{last}",)
  number, part = path[1].removeprefix("block_"), "/".join(path[2:-1])
  if family != "dinov2":
    return tuple(f"{path[0]}_model.encoder.layers.{number}.{name}.{last}" for name in _BLOCK[part])
  if not part:  # the factors of layer scale
    return (f"encoder.layer.{number}.layer_{last}.lambda1",)
  found = {**_DINO_BLOCK, **_SWIGLU}[part] if swiglu else _DINO_BLOCK[part]
  return tuple(f"encoder.layer.{number}.{name}.{last}" for name in found)


def stored_shape(path: Path, shape: tuple[int, ...], pieces: int, patch: int) -> tuple[int, ...]:
  """Returns the shape in a checkpoint of one of the `pieces` of a parameter; 1s in front aside."""
  if path[-1] == "kernel":
    inner, outer = shape
    return (outer // pieces, 3, patch, patch) if path[-2] == "patches" else (outer // pieces, inner)
  if path[-1] in ("class_token", "probe", "registers"):
    return shape
  return (shape[0] // pieces, *shape[1:]) if shape else ()


def ours(path: Path, stored: np.ndarray) -> np.ndarray:
  """Returns a stored tensor in our layout, as a view."""
  if path[-1] == "kernel":
    return stored.transpose(2, 3, 1, 0).reshape(-1, len(stored)) if stored.ndim == 4 else stored.T
  return stored


def theirs(path: Path, array: np.ndarray, patch: int) -> np.ndarray:
  """Returns a parameter of ours as PyTorch lays it out: the inverse of `ours`."""
  if path[-1] == "kernel" and path[-2] == "patches":
    return array.reshape(patch, patch, 3, -1).transpose(3, 2, 0, 1)
  if path[-1] == "class_token":
    return array[0]
  return array.T if path[-1] == "kernel" else array
