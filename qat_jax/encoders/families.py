"""A checkpoint's config.json → the towers' settings; transformers' config classes know what is not written there."""

from __future__ import annotations

import pathlib
from typing import Any

from qat_jax.encoders.files import read_object
from qat_jax.encoders.tower import ACTIVATIONS, Blocks, Text, Vision

KNOWN = ("clip", "siglip", "dinov2", "dinov2_with_registers")
WANTED = "CLIP (OpenCLIP in transformers' format too), SigLIP, SigLIP 2 of one resolution, DINOv2"


def read_config(folder: pathlib.Path) -> Any:
  """Returns the config of a checkpoint's folder.

  Raises FileNotFoundError where config.json is missing; ValueError where it is broken, of a kind that is not known, or
  of NaFlex.
  """
  path = folder / "config.json"
  if not path.is_file():
    raise FileNotFoundError(f"the folder {str(folder)!r} lacks config.json; give the folder of a whole checkpoint")
  kind = read_object(path).get("model_type")
  if kind == "siglip2":
    raise ValueError(
      f"{str(folder)!r} is a siglip2, the NaFlex variant of SigLIP 2 (images of any aspect ratio), which is not "
      "supported; take one of fixed resolution, such as google/siglip2-base-patch16-512"
    )
  if kind not in KNOWN:
    raise ValueError(f"{str(folder)!r} is a {kind!r}; wanted one of {', '.join(KNOWN)}: {WANTED}")
  from transformers import AutoConfig

  return AutoConfig.from_pretrained(folder)


def towers(config: Any) -> tuple[Vision, Text | None]:
  """Returns the settings of the image tower and of the text tower, None where there is none."""
  if config.model_type == "clip":
    return _clip_vision(config), _clip_text(config)
  if config.model_type == "siglip":
    return _siglip_vision(config.vision_config), _siglip_text(config.text_config)
  return _dinov2(config), None


def _clip_vision(config: Any) -> Vision:
  part = config.vision_config
  return Vision(
    _blocks(part),
    part.patch_size,
    part.image_size // part.patch_size,
    "class",
    config.projection_dim,  # the one inside vision_config may be stale
    patch_bias=False,
    pre_norm=True,
  )


def _clip_text(config: Any) -> Text:
  part = config.text_config
  # OpenAI's configs say 2, which their tokenizers do not mean: the end is the largest id there.
  pool = "largest" if part.eos_token_id == 2 else "end"
  size = (part.vocab_size, part.max_position_embeddings)
  return Text(_blocks(part, causal=True), *size, pool, config.projection_dim, part.eos_token_id)


def _siglip_vision(part: Any) -> Vision:
  return Vision(_blocks(part), part.patch_size, part.image_size // part.patch_size, "attention")


def _siglip_text(part: Any) -> Text:
  projection = getattr(part, "projection_size", None) or part.hidden_size
  return Text(_blocks(part), part.vocab_size, part.max_position_embeddings, "last", projection, projection_bias=True)


def _dinov2(config: Any) -> Vision:
  registers = getattr(config, "num_register_tokens", 0)
  hidden = int(config.hidden_size * config.mlp_ratio)
  activation = config.hidden_act
  if config.use_swiglu_ffn:
    hidden, activation = (int(hidden * 2 / 3) + 7) // 8 * 8, "swiglu"
  blocks = Blocks(
    config.hidden_size,
    config.num_hidden_layers,
    config.num_attention_heads,
    hidden,
    _known(activation),
    config.layer_norm_eps,
    layer_scale=True,
  )
  grid = config.image_size // config.patch_size
  return Vision(blocks, config.patch_size, grid, "class", registers=registers, antialias=registers > 0)


def _blocks(part: Any, causal: bool = False) -> Blocks:
  return Blocks(
    part.hidden_size,
    part.num_hidden_layers,
    part.num_attention_heads,
    part.intermediate_size,
    _known(part.hidden_act),
    part.layer_norm_eps,
    causal,
  )


def _known(activation: str) -> str:
  if activation not in ACTIVATIONS:
    raise ValueError(f"config.json says hidden_act is {activation!r}; wanted one of {', '.join(ACTIVATIONS)}")
  return activation
