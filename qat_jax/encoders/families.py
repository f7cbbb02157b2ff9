"""A checkpoint's configuration → the towers' settings; transformers' config classes know what is not written there."""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Callable
from typing import Any

from qat_jax.encoders import open_clip, weights
from qat_jax.encoders.files import read_object, understood
from qat_jax.encoders.settings import Layers, Rope, Text, Vision
from qat_jax.encoders.tower import ACTIVATIONS

Towers = tuple[Vision, Text | None]
WANTED = (
  "CLIP, MetaCLIP 2, SigLIP, SigLIP 2 (NaFlex too), DINOv2 and DINOv3 in transformers' format, and OpenCLIP's own "
  "files (open_clip_config.json), PE-Core among them"
)
REFUSED = {  # model_type → why
  "chinese_clip": "its text tower is a BERT",
  "jina_clip": "its text tower is XLM-R with LoRA, and its licence is non-commercial",
  "xclip": "it encodes videos",
  "clipseg": "it segments pictures",
  "align": "its image tower is an EfficientNet",
  "altclip": "its text tower is XLM-R",
  "blip": "its text tower attends to pictures",
  "evaclip": "EVA's towers are not known here",
  "mobileclip": "its image tower is a convolutional hybrid",
  "dinov3_convnext": "it is convolutional; take a dinov3-vit",
}


def read_encoder_config(folder: pathlib.Path) -> Any:
  """Returns the configuration of a checkpoint's folder; OpenCLIP's where there is no other with its weights.

  Raises FileNotFoundError where there is none; ValueError where it is broken, or of a kind that is not known.
  """
  path, other = folder / "config.json", folder / open_clip.CONFIG
  if other.is_file():
    weighed = any((folder / file).is_file() for file in (weights.SAFETENSORS, weights.INDEX))
    if not (weighed and path.is_file() and read_object(path).get("model_type") in FAMILIES):
      with understood(other):
        return open_clip.read_open_clip(folder)
  if not path.is_file():
    raise FileNotFoundError(
      f"the folder {str(folder)!r} lacks config.json (open_clip_config.json will do); give the folder of a whole "
      "checkpoint"
    )
  given = read_object(path)
  kind = given.get("model_type")
  if kind not in FAMILIES:
    reason = f" ({REFUSED[kind]})" if kind in REFUSED else ""
    if "architecture" in given:
      reason = f" (timm's {given['architecture']!r}: it has no text tower; take OpenCLIP's or transformers' checkpoint)"
    raise ValueError(f"{str(folder)!r} is a {kind!r}{reason}; wanted one of {', '.join(FAMILIES)}: {WANTED}")
  from transformers import CONFIG_MAPPING

  with understood(path):
    return CONFIG_MAPPING[kind].from_dict(given)


def towers(config: Any) -> Towers:
  """Returns the settings of the image tower and of the text tower, None where there is none.

  Raises ValueError for a setting that is no number where one is wanted, or one that no tower can have.
  """
  found = FAMILIES[config.model_type](config)
  for tower in found:
    for part in () if tower is None else (tower, tower.blocks, *([tower.blocks.rope] if tower.blocks.rope else [])):
      _check_numbers(part)
  return found


def _check_numbers(part: Any) -> None:
  for field in dataclasses.fields(part):
    value, kind = getattr(part, field.name), {"int": int, "float": int | float}.get(str(field.type))
    least = 1 if field.name in ("width", "layers", "heads", "feed_forward", "patch", "grid", "words", "tokens") else 0
    if kind and not (isinstance(value, kind) and math.isfinite(value) and (field.type == "float" or value >= least)):
      wanted = "a number" if field.type == "float" else f"a whole number of at least {least}"
      raise ValueError(f"the {field.name} of a tower ({type(part).__name__}) is {value!r}; wanted {wanted}")
  if isinstance(part, Layers) and part.width % part.heads:
    raise ValueError(f"the width of a tower is {part.width}, no multiple of {part.heads} heads")


def _clip(config: Any) -> Towers:
  part = config.vision_config
  vision = Vision(
    _blocks(part),
    part.patch_size,
    part.image_size // part.patch_size,
    "class",
    config.projection_dim,  # the one inside vision_config may be stale
    patch_bias=False,
    pre_norm=True,
  )
  part = config.text_config
  # OpenAI's configs say 2, which their tokenizers do not mean: the end is the largest id there. MetaCLIP 2's do.
  pool = "largest" if part.eos_token_id == 2 and config.model_type == "clip" else "end"
  size = (part.vocab_size, part.max_position_embeddings)
  return vision, Text(_blocks(part, causal=True), *size, pool, config.projection_dim, part.eos_token_id)


def _siglip(config: Any) -> Towers:
  part = config.vision_config
  if config.model_type == "siglip2":
    vision = Vision(
      _blocks(part), part.patch_size, math.isqrt(part.num_patches), "attention", resampling="linear smooth", patches=256
    )
  else:
    vision = Vision(_blocks(part), part.patch_size, part.image_size // part.patch_size, "attention")
  part = config.text_config
  projection = getattr(part, "projection_size", None) or part.hidden_size
  size = (part.vocab_size, part.max_position_embeddings)
  return vision, Text(_blocks(part), *size, "last", projection, projection_bias=True, logit_bias=True)


def _dinov2(config: Any) -> Towers:
  registers = getattr(config, "num_register_tokens", 0)
  hidden = int(config.hidden_size * config.mlp_ratio)
  gated = config.use_swiglu_ffn
  blocks = Layers(
    config.hidden_size,
    config.num_hidden_layers,
    config.num_attention_heads,
    (int(hidden * 2 / 3) + 7) // 8 * 8 if gated else hidden,
    "silu" if gated else _known(config.hidden_act),
    config.layer_norm_eps,
    layer_scale=True,
    gated=gated,
  )
  grid = config.image_size // config.patch_size
  resampling = "cubic smooth" if registers else "cubic"
  return Vision(blocks, config.patch_size, grid, "class", registers=registers, resampling=resampling), None


def _dinov3(config: Any) -> Towers:
  biases = {
    "query": "q_proj",
    "key": "k_proj",
    "value": "v_proj",
    "proj": "o_proj",
    "mlp": "up_proj gate_proj down_proj",
  }
  without = [name for part, names in biases.items() if not getattr(config, f"{part}_bias") for name in names.split()]
  blocks = Layers(
    config.hidden_size,
    config.num_hidden_layers,
    config.num_attention_heads,
    config.intermediate_size,
    _known(config.hidden_act),
    config.layer_norm_eps,
    layer_scale=True,
    gated=config.use_gated_mlp,
    rope=Rope(config.rope_theta, offset=0.5, span=4 * math.pi, start=-2 * math.pi),  # centres, from −2π to 2π
    without_bias=tuple(without),
  )
  grid, registers = config.image_size // config.patch_size, config.num_register_tokens
  return Vision(blocks, config.patch_size, grid, "class", registers=registers, table=False), None


def _blocks(part: Any, causal: bool = False) -> Layers:
  return Layers(
    part.hidden_size,
    part.num_hidden_layers,
    part.num_attention_heads,
    part.intermediate_size,
    _known(part.hidden_act),
    part.layer_norm_eps,
    causal,
  )


def _known(activation: str) -> str:
  if activation not in tuple(ACTIVATIONS):
    raise ValueError(f"hidden_act is {activation!r}; wanted one of {', '.join(ACTIVATIONS)}")
  return activation


def _open_clip(config: Any) -> Towers:
  return config.vision, config.text


FAMILIES: dict[str, Callable[[Any], Towers]] = {
  "clip": _clip,
  "metaclip_2": _clip,
  "siglip": _siglip,
  "siglip2": _siglip,
  "dinov2": _dinov2,
  "dinov2_with_registers": _dinov2,
  "dinov3_vit": _dinov3,
  "open_clip": _open_clip,
  "open_clip_timm": _open_clip,
}
