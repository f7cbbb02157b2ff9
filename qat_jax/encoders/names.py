"""What the towers' parameters are called in the checkpoints of each family, and how they lie there.

PyTorch's layout: a dense weight is (out, in), a convolution (out, in, height, width). A path is that of our parameter
tree, such as ("vision", "block_0", "mlp", "up", "kernel").
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict

from qat_jax.encoders.settings import Text, Vision
from qat_jax.encoders.tower import TextTower, VisionTower

Path = tuple[str, ...]

# A key is a parameter's whole path or its module's, `block` for every layer; {} is the layer's number. Of a module the
# name goes before ".weight" and ".bias", or these take the place of *. Names with a space between are stacked in ours.
# In front, ^ marks what is stored as (in, out) under the name itself, = a matrix of patches: their pixels row by row.
_TRANSFORMERS = {
  "norm1": "layer_norm1",
  "norm2": "layer_norm2",
  "attention/qkv": "self_attn.q_proj self_attn.k_proj self_attn.v_proj",
  "attention/out": "self_attn.out_proj",
  "mlp/up": "mlp.fc1",
  "mlp/down": "mlp.fc2",
}
_SAME = {"norm1": "norm1", "norm2": "norm2", "mlp/up": "mlp.fc1", "mlp/down": "mlp.fc2"}
_DINO2 = {
  **_SAME,
  "attention/qkv": "attention.attention.query attention.attention.key attention.attention.value",
  "attention/out": "attention.output.dense",
  "scale1": "layer_scale1.lambda1",
  "scale2": "layer_scale2.lambda1",
}
_DINO3 = {
  **_DINO2,
  "attention/qkv": "attention.q_proj attention.k_proj attention.v_proj",
  "attention/out": "attention.o_proj",
  "mlp/up": "mlp.up_proj",
  "mlp/down": "mlp.down_proj",
}
_OPEN_CLIP = {
  "norm1": "ln_1",
  "norm2": "ln_2",
  "attention/qkv": "attn.in_proj_*",
  "attention/out": "attn.out_proj",
  "mlp/up": "mlp.c_fc",
  "mlp/down": "mlp.c_proj",
  "scale1": "ls_1.gamma",
  "scale2": "ls_2.gamma",
}
_TIMM = {
  **_SAME,
  "attention/qkv": "attn.qkv",
  "attention/out": "attn.proj",
  "scale1": "ls1.gamma",
  "scale2": "ls2.gamma",
}
_GATED = {
  "dinov2": {"mlp/up": "mlp.weights_in", "mlp/down": "mlp.weights_out"},
  "dinov3_vit": {"mlp/up": "mlp.gate_proj mlp.up_proj"},
}


def _layers(part: str, before: str, layer: dict[str, str]) -> dict[str, str]:
  stacked = lambda names: " ".join(f"{before}.{{}}.{name}" for name in names.split())
  return {f"{part}/block/{key}": stacked(names) for key, names in layer.items()}


_LOGITS = {"logit_scale": "logit_scale", "logit_bias": "logit_bias"}
_BOTH = {
  **_LOGITS,
  **_layers("vision", "vision_model.encoder.layers", _TRANSFORMERS),
  **_layers("text", "text_model.encoder.layers", _TRANSFORMERS),
  "vision/patches": "vision_model.embeddings.patch_embedding",
  "vision/position": "vision_model.embeddings.position_embedding.weight",
  "vision/post_norm": "vision_model.post_layernorm",
  "text/words": "text_model.embeddings.token_embedding.weight",
  "text/position": "text_model.embeddings.position_embedding.weight",
  "text/post_norm": "text_model.final_layer_norm",
}
_CLIP = {
  **_BOTH,
  "vision/class_token": "vision_model.embeddings.class_embedding",
  "vision/pre_norm": "vision_model.pre_layrnorm",  # so spelt
  "vision/projection": "visual_projection",
  "text/projection": "text_projection",
}
_SIGLIP = {
  **_BOTH,
  "vision/probe": "vision_model.head.probe",
  "vision/pool/qkv": "vision_model.head.attention.in_proj_*",
  "vision/pool/out": "vision_model.head.attention.out_proj",
  "vision/pool_norm": "vision_model.head.layernorm",
  "vision/pool_mlp/up": "vision_model.head.mlp.fc1",
  "vision/pool_mlp/down": "vision_model.head.mlp.fc2",
  "text/projection": "text_model.head",
}
_DINO = {
  "vision/patches": "embeddings.patch_embeddings.projection",
  "vision/position": "embeddings.position_embeddings",
  "vision/class_token": "embeddings.cls_token",
  "vision/registers": "embeddings.register_tokens",
  "vision/post_norm": "layernorm",
}
_OPEN = {
  **_LOGITS,
  **_layers("vision", "visual.transformer.resblocks", _OPEN_CLIP),
  **_layers("text", "transformer.resblocks", _OPEN_CLIP),
  "vision/patches": "visual.conv1",
  "vision/class_token": "visual.class_embedding",
  "vision/position": "visual.positional_embedding",
  "vision/pre_norm": "visual.ln_pre",
  "vision/post_norm": "visual.ln_post",
  "vision/projection": "^visual.proj",
  "text/words": "token_embedding.weight",
  "text/position": "positional_embedding",
  "text/post_norm": "ln_final",
  "text/projection": "^text_projection",
}
_NAMES = {
  "clip": _CLIP,
  "metaclip_2": _CLIP,
  "siglip": _SIGLIP,
  "siglip2": {**_SIGLIP, "vision/patches": "=vision_model.embeddings.patch_embedding"},
  "dinov2": {**_DINO, **_layers("vision", "encoder.layer", _DINO2)},
  "dinov3_vit": {
    **_DINO,
    **_layers("vision", "layer", _DINO3),
    "vision/patches": "embeddings.patch_embeddings",
    "vision/post_norm": "norm",
  },
  "open_clip": _OPEN,
  "open_clip_timm": {
    **_OPEN,
    **_layers("vision", "visual.trunk.blocks", _TIMM),
    "vision/patches": "visual.trunk.patch_embed.proj",
    "vision/class_token": "visual.trunk.cls_token",
    "vision/position": "visual.trunk.pos_embed",
    "vision/pre_norm": "visual.trunk.norm_pre",
    "vision/post_norm": "visual.trunk.norm",
    "vision/projection": "visual.trunk.head",
    "vision/probe": "visual.trunk.attn_pool.latent",
    "vision/pool/qkv": "visual.trunk.attn_pool.q visual.trunk.attn_pool.kv",
    "vision/pool/out": "visual.trunk.attn_pool.proj",
    "vision/pool_norm": "visual.trunk.attn_pool.norm",
    "vision/pool_mlp/up": "visual.trunk.attn_pool.mlp.fc1",
    "vision/pool_mlp/down": "visual.trunk.attn_pool.mlp.fc2",
  },
}
_NAMES["dinov2_with_registers"] = _NAMES["dinov2"]
# What OpenCLIP calls differently where the text tower or the last layers are modules of their own.
RENAMED = (
  (re.compile(r"^text\."), ""),
  (re.compile(r"^visual\.head\.proj\."), "visual.trunk.head."),
  (re.compile(r"^visual\.trunk\.fc_norm\."), "visual.trunk.norm."),
)
# In files, but no part of what is computed.
PASSED_OVER = re.compile(r"(.*\.position_ids|embeddings\.mask_token|attn_mask)$")


class TensorPiece(NamedTuple):
  """What a checkpoint stores of a parameter: all of it, or some of our columns."""

  name: str  # "" where the checkpoint has none: zeros
  shape: tuple[int, ...]  # as it is stored, 1s in front aside
  columns: int  # of ours
  as_ours: bool  # whether it lies as ours does


def parameter_shapes(vision: Vision, text: Text | None) -> dict[Path, jax.ShapeDtypeStruct]:
  """Returns the shape of every parameter, by path: of both towers, and of the logits where the family has them."""
  pixels = jax.ShapeDtypeStruct((1, vision.grid * vision.patch, vision.grid * vision.patch, 3), np.float32)
  tree: dict[str, Any] = {"vision": _shapes(VisionTower(vision), pixels)}
  if text is not None:
    tree["text"] = _shapes(TextTower(text), jax.ShapeDtypeStruct((1, text.tokens), np.int32))
    tree["logit_scale"] = jax.ShapeDtypeStruct((), np.float32)
    if text.logit_bias:
      tree["logit_bias"] = jax.ShapeDtypeStruct((), np.float32)
  return flatten_dict(tree)


def _shapes(tower: nn.Module, example: jax.ShapeDtypeStruct) -> Any:
  return jax.eval_shape(tower.init, jax.random.key(0), example)["params"]


def tensor_names(family: str, vision: Vision, text: Text | None) -> dict[str, str]:
  """Returns what the parameters of a checkpoint's modules are called."""
  found = dict(_NAMES[family])
  if vision.blocks.gated:
    gated = _GATED[family.removesuffix("_with_registers")]
    prefix = found["vision/block/norm1"].removesuffix(".norm1").removesuffix(".{}")
    found.update(_layers("vision", prefix, gated))
  if text is not None and text.projection_bias:
    found["text/projection"] = found["text/projection"].removeprefix("^")
  return found


def pieces(path: Path, shape: tuple[int, ...], table: dict[str, str], vision: Vision) -> list[TensorPiece]:
  """Returns what a checkpoint holds of a parameter of ours, in the order of our columns."""
  last = {"kernel": "weight", "scale": "weight"}.get(path[-1], path[-1])
  number = next((part.removeprefix("block_") for part in path if part.startswith("block_")), "")
  general = ["block" if part.startswith("block_") else part for part in path]
  whole, module = "/".join(general), "/".join(general[:-1])
  entry = table[whole] if whole in table else table[module]
  marked = entry[0] if entry[0] in "^=" else ""
  names = [name.format(number) for name in entry.removeprefix(marked).split()]
  if whole not in table and marked != "^":
    names = [name.replace("*", last) if "*" in name else f"{name}.{last}" for name in names]
  shares = [2 if name.endswith(f".kv.{last}") else 1 for name in names]
  found = []
  for name, share in zip(names, shares, strict=True):
    columns = shape[-1] * share // sum(shares) if shape else 1
    stored = (*shape[:-1], columns) if shape else ()
    if path[-1] == "kernel" and marked != "^":
      conv = path[-2] == "patches" and marked != "="
      stored = (columns, 3, vision.patch, vision.patch) if conv else (columns, shape[0])
    without = path[-1] == "bias" and name.split(".")[-2] in vision.blocks.without_bias
    found.append(TensorPiece("" if without else name, stored, columns, marked == "^"))
  return found


def in_our_order(path: Path, stored: np.ndarray, as_ours: bool = False) -> np.ndarray:
  """Returns a stored tensor in our layout, as a view."""
  if path[-1] == "kernel" and not as_ours:
    return stored.transpose(2, 3, 1, 0).reshape(-1, len(stored)) if stored.ndim == 4 else stored.T
  return stored


def theirs(path: Path, array: np.ndarray, patch: int) -> np.ndarray:
  """Returns a parameter of ours as transformers lays it out: the inverse of `ours`."""
  if path[-1] == "kernel" and path[-2] == "patches":
    return array.reshape(patch, patch, 3, -1).transpose(3, 2, 0, 1)
  if path[-1] == "class_token":
    return array[0]
  return array.T if path[-1] == "kernel" else array
