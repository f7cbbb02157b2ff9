"""OpenCLIP's own checkpoints: open_clip_config.json → the towers' settings, plain ViTs of timm and PE-Core among them.

What a setting means is as OpenCLIP 3.3 and timm 1.0 have it. Every setting that is neither known nor without effect is
refused: its features would be others.
"""

from __future__ import annotations

import math
import pathlib
import re
import types
from typing import Any

from qat_jax.encoders import weights
from qat_jax.encoders.files import read_object
from qat_jax.encoders.settings import Layers, Rope, Text, Vision

CONFIG = "open_clip_config.json"
# Attention heads of timm's ViTs, which neither the configuration nor the weights' shapes tell.
HEADS = {
  **{"tiny": 3, "xsmall": 4, "small": 6, "medium": 8, "betwixt": 10, "base": 12, "base_plus": 14, "large": 16},
  **{"so400m": 16, "huge": 16, "giant": 16, "giantopt": 16, "gigantic": 16},
}
TRUNK = re.compile(
  r"vit_(?P<core>pe_core_)?(?P<size>[a-z0-9]+)_patch\d+_(?P<plus>plus_)?"
  r"((?P<kind>siglip_gap|siglip|clip_quickgelu|clip|gap)_)?\d+$"
)
# timm's SigLIPs have the exact GELU, but for these, where the published ones were trained with tanh's.
TANH = re.compile(r"vit_(base_patch32_siglip|large_patch16_siglip(_gap)?_512|so400m_patch16|giantopt)")
KNOWN: dict[str, dict[str, Any]] = {  # settings and what they are where they are not written; None: any, without effect
  "model_cfg": {
    **{"embed_dim": ..., "quick_gelu": False, "vision_cfg": ..., "text_cfg": ..., "custom_text": None},
    **{"init_logit_bias": ..., "init_logit_scale": None, "output_dict": None},
  },
  "vision_cfg": {
    **{"layers": 12, "width": 768, "head_width": 64, "mlp_ratio": 4.0, "patch_size": 16, "image_size": 224},
    **{"ls_init_value": ..., "patch_dropout": None, "attn_pooler_queries": None, "attn_pooler_heads": None},
    **{"no_ln_pre": False, "pos_embed_type": None, "final_ln_after_pool": False, "pool_type": "tok"},
    **{"output_tokens": None, "act_kwargs": ..., "norm_kwargs": ..., "timm_model_name": ..., "timm_drop": None},
    **{"timm_model_pretrained": None, "timm_pool": "avg", "timm_proj": "linear", "timm_proj_bias": False},
    **{"timm_drop_path": None},
  },
  "text_cfg": {
    **{"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12, "mlp_ratio": 4.0},
    **{"ls_init_value": ..., "pad_id": None, "eos_id": 2, "no_causal_mask": False, "pool_type": "argmax"},
    **{"proj_bias": False, "proj_type": "linear", "output_tokens": None, "act_kwargs": ..., "norm_kwargs": ...},
    **{"hf_tokenizer_name": "", "tokenizer_kwargs": ..., "final_ln_after_pool": None, "hf_model_pretrained": None},
    **{"hf_proj_type": None, "hf_pooler_type": None},
  },
}
REASONS = {
  "hf_model_name": "its text tower is one of transformers', such as RoBERTa or XLM-R",
  "multimodal_cfg": "it is a CoCa",
  "attentional_pool": "it pools as CoCa does",
  "timm_model_name": "only timm's plain ViTs and PE-Core are known; not EVA, MobileCLIP, ViTamin, ConvNeXt or Swin",
}


def read_open_clip(folder: pathlib.Path) -> types.SimpleNamespace:
  """Returns the configuration of a checkpoint, with `model_type`, `vision`, `text` and `preprocess`.

  Raises ValueError that names what is not known.
  """
  path = folder / CONFIG
  whole = read_object(path)
  model = _settings(path, whole, "model_cfg")
  vision, text = (_settings(path, model, key) for key in ("vision_cfg", "text_cfg"))
  kwargs = text["tokenizer_kwargs"] or {}
  if set(kwargs) - {"clean"}:
    raise ValueError(f"{path}: tokenizer_kwargs {min(set(kwargs) - {'clean'})!r} is not known here; wanted clean alone")
  text_tower = Text(
    _blocks(path, text, text["heads"], model["quick_gelu"], causal=not text["no_causal_mask"]),
    text["vocab_size"],
    text["context_length"],
    _one_of(path, "text_cfg.pool_type", text["pool_type"], argmax="largest", eos="end", last="last", first="first"),
    model["embed_dim"] if _one_of(path, "proj_type", text["proj_type"], linear=True, none=False) else 0,
    text["eos_id"],
    text["proj_bias"],
    logit_bias=model["init_logit_bias"] is not None,
  )
  trunk = vision["timm_model_name"]
  tower = _trunk(path, vision, model["embed_dim"]) if trunk else _own(path, vision, model)
  own = bool(text["hf_tokenizer_name"])
  return types.SimpleNamespace(
    model_type="open_clip_timm" if trunk else "open_clip",
    vision=tower,
    text=text_tower,
    clean=kwargs.get("clean", "whitespace" if own else "lower"),
    pad=None if own else 0,  # OpenCLIP's own tokenizer pads with the id 0, which the folder's need not know
    preprocess={**(whole.get("preprocess_cfg") or {}), "size": vision["image_size"]},  # which OpenCLIP takes too
  )


def _settings(path: pathlib.Path, parent: dict[str, Any], name: str) -> dict[str, Any]:
  """Returns the settings of a part with what holds where they are not written; ValueError for one that is not known."""
  given, known = parent.get(name), KNOWN[name]
  if not isinstance(given, dict):
    raise ValueError(f"{path} has no {name}; fetch it again")
  for key, value in given.items():
    if key not in known and value not in (None, False, "", 0, 0.0, "learnable"):
      raise ValueError(
        f"{path}: {name} has {key} {value!r}, which is not known here ({REASONS.get(key, 'a setting of its own')}); "
        "take a plain CLIP, SigLIP or PE-Core"
      )
  return {key: None if default is ... else default for key, default in known.items()} | given


def _one_of(path: pathlib.Path, name: str, value: Any, **known: Any) -> Any:
  if value not in known:
    raise ValueError(f"{path}: {name} is {value!r}; wanted one of {', '.join(known)}")
  return known[value]


def _blocks(path: pathlib.Path, part: dict[str, Any], heads: int, quick: bool, causal: bool = False) -> Layers:
  activation, kwargs = "quick_gelu" if quick else "gelu", part["act_kwargs"] or {}
  if kwargs:
    if quick or kwargs != {"approximate": "tanh"}:
      raise ValueError(f"{path}: act_kwargs is {kwargs}; wanted approximate tanh, without quick_gelu")
    activation = "gelu_pytorch_tanh"
  if set(part["norm_kwargs"] or {}) - {"eps"}:
    raise ValueError(f"{path}: norm_kwargs is {part['norm_kwargs']}; wanted eps alone")
  return Layers(
    part["width"],
    part["layers"],
    heads,
    int(part["width"] * part["mlp_ratio"]),
    activation,
    (part["norm_kwargs"] or {}).get("eps", 1e-5),
    causal,
    layer_scale=part["ls_init_value"] is not None,
  )


def _own(path: pathlib.Path, vision: dict[str, Any], model: dict[str, Any]) -> Vision:
  """Returns the settings of OpenCLIP's own image tower."""
  sizes = [vision[key] for key in ("layers", "image_size", "patch_size")]
  if not all(isinstance(size, int) for size in sizes):
    raise ValueError(f"{path}: vision_cfg has layers, image and patch of {sizes}; wanted three numbers: a square ViT")
  return Vision(
    _blocks(path, vision, vision["width"] // vision["head_width"], model["quick_gelu"]),
    vision["patch_size"],
    vision["image_size"] // vision["patch_size"],
    _one_of(path, "vision_cfg.pool_type", vision["pool_type"], tok="class", avg="mean"),
    model["embed_dim"],
    patch_bias=False,
    pre_norm=not vision["no_ln_pre"],
    class_token=True,
    norm_pooled=vision["final_ln_after_pool"],
    resampling="cubic smooth",
  )


def _trunk(path: pathlib.Path, vision: dict[str, Any], width: int) -> Vision:
  """Returns the settings of an image tower of timm's: its sizes are those of the weights, the rest is in its name."""
  name = vision["timm_model_name"]
  known = TRUNK.match(name)
  size = known and known["size"] + ("_plus" if known["plus"] else "")
  if not known or size not in HEADS:
    raise ValueError(f"{path}: timm_model_name is {name!r}, which is not known here ({REASONS['timm_model_name']})")
  shapes = weights.tensors(path.parent, "open_clip").shapes
  shape = lambda name: shapes.get(f"visual.trunk.{name}", ())
  need = {part: shape(part) for part in ("patch_embed.proj.weight", "pos_embed", "blocks.0.mlp.fc1.weight")}
  if not all(need.values()):
    raise ValueError(f"{path.parent} lacks visual.trunk.{min(need, key=lambda part: len(need[part]))} of {name!r}")
  table, classes = need["pos_embed"][-2], int(bool(shape("cls_token")))
  hidden, inner = need["blocks.0.mlp.fc1.weight"]
  core, grid = bool(known["core"]), math.isqrt(table - classes)
  kind = known["kind"] or ""
  projected = vision["timm_proj"] != "none"
  own = "token" if classes else "avg"
  pool = _one_of(path, "timm_pool", vision["timm_pool"] or own, token="class", avg="mean", map="attention")
  _one_of(path, "timm_proj", vision["timm_proj"] or "", linear=True, none=True, **{"": True})
  if grid**2 != table - classes or (pool == "attention" and classes and not core) or (pool == "class" and not classes):
    raise ValueError(f"{path}: {name!r} with {classes} class tokens, {table} positions and pool {pool!r} is not known")
  blocks = Layers(
    inner,
    len({name.split(".")[3] for name in shapes if name.startswith("visual.trunk.blocks.")}),
    HEADS[size],
    hidden,
    "quick_gelu" if kind == "clip_quickgelu" else "gelu_pytorch_tanh" if TANH.match(name) else "gelu",
    1e-5 if core or kind.startswith("clip") else 1e-6,
    layer_scale=bool(shape("blocks.0.ls1.gamma")),
    rope=Rope(1e4, float(size != "gigantic"), grid, columns_first=True, neighbours=True) if core else None,
    without_bias=() if shape("blocks.0.attn.qkv.bias") else ("qkv",),
  )
  return Vision(
    blocks,
    need["patch_embed.proj.weight"][-1],
    grid,
    pool,
    width if projected else 0,
    patch_bias=bool(shape("patch_embed.proj.bias")),
    pre_norm=core or kind.startswith("clip"),
    class_token=bool(classes),
    norm_pooled=bool(shape("fc_norm.weight")),
    projection_bias=bool(shape("head.bias")),
    probe=(8 if core else 0, (shape("attn_pool.mlp.fc1.weight") or (0,))[0]),
    resampling="cubic smooth",
  )
