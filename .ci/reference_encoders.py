"""Makes small random checkpoints and what the reference implementations compute: tests/data/reference_encoders.

Needs an environment of its own, which no test needs: torch, torchvision, transformers, open_clip_torch and timm.

    ENVIRONMENT/bin/python .ci/reference_encoders.py OUT [--seed 1] [--only dinov3 ...]

Pictures are those of tests/data/reference_encoders/images, or of --images. Answers are those of a run in float64.
"""

import argparse
import copy
import gzip
import json
import pathlib
import shutil

import numpy as np
import torch
from PIL import Image

try:
  import torchvision  # noqa: F401
except RuntimeError:  # beside a torch of another build it lacks two operators, which nothing here uses
  library = torch.library.Library("torchvision", "DEF")
  for operator in ("nms", "qnms"):
    library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

DATA = pathlib.Path(__file__).parents[1] / "tests/data/reference_encoders"
TEXTS = [
  "a red star",
  "A Photo of TWO dogs, on the beach!",
  "don’t: “curly” quotes &amp; entities — naïve_snake_case",
  "größer, weiß; 東京",
  "a " * 60 + "very long text",
  "",
  "</s> inside <|endoftext|>",
]
CLIP_TEXT = {"context_length": 16, "width": 40, "heads": 4, "layers": 2}


def randomise(model, seed):
  """Fills every parameter so that none is trivial, with numbers that 16 bits hold."""
  generator = torch.Generator().manual_seed(seed)
  for name, x in model.named_parameters():
    noise = torch.randn(x.shape, generator=generator)
    if name in ("logit_scale", "logit_bias"):
      x.data = torch.tensor({"logit_scale": 2.25, "logit_bias": -3.0}[name]).reshape(x.shape)
    elif x.ndim < 2 and ("norm" in name or "ln_" in name) and name.endswith("weight"):
      x.data = 1 + 0.3 * noise
    elif "latent" in name or "probe" in name:
      x.data = 0.5 * noise
    elif "embed" in name or "token" in name or "conv1" in name:  # small, so that a LayerNorm's epsilon shows
      x.data = 0.03 * noise * (x[0].numel() ** -0.5 if x.ndim == 4 else 1)
    elif x.ndim < 2:
      x.data = 0.3 * noise + (0.7 if "lambda" in name or "gamma" in name else 0)
    else:
      x.data = noise * 1.2 / x[0].numel() ** 0.5
    x.data = x.data.half().float()
  return model.eval()


def unit(x):
  return torch.nn.functional.normalize(x, dim=-1).numpy()


def save(folder, pictures, model, images, other=None, texts=None, scale=None, more=()):
  """Writes vectors.npz: what a batch of prepared pictures and texts becomes, in float64."""
  with torch.inference_mode():
    model.double()
    torch.set_default_dtype(torch.float64)
    found = dict(more)
    found |= {"pixel_values": pictures.numpy().astype(np.float32), "image_embeds": unit(images(pictures.double()))}
    if other is not None:
      found |= {"other_pixel_values": other.numpy(), "other_image_embeds": unit(images(other.double()))}
    if texts is not None:
      ids, cut, features = texts
      found |= {"texts": np.array(TEXTS), "input_ids": ids.numpy(), "truncated": np.array(cut)}
      found["text_embeds"] = unit(features(ids))
      found["logits_per_image"] = scale[0] * found["image_embeds"] @ found["text_embeds"].T + scale[1]
  torch.set_default_dtype(torch.float32)
  found = {key: x.astype(np.float32) if x.dtype == np.float64 else x for key, x in found.items()}
  np.savez_compressed(folder / "vectors.npz", **found)


def dinov3(folder, images, seed, **settings):
  import transformers

  config = transformers.DINOv3ViTConfig(
    **{"patch_size": 8, "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4},
    **{"image_size": 32, "num_register_tokens": 4},
    **settings,
  )
  model = randomise(transformers.DINOv3ViTModel(config), seed)
  copy.deepcopy(model).half().save_pretrained(folder)
  processor = transformers.DINOv3ViTImageProcessorFast(size={"height": 32, "width": 32})
  processor.save_pretrained(folder)
  pictures = processor(images=images, return_tensors="pt")["pixel_values"]
  other = torch.randn(2, 3, 24, 56, generator=torch.Generator().manual_seed(seed))
  save(folder, pictures, model, lambda x: model(pixel_values=x).pooler_output, other)


def metaclip2(folder, images, seed):
  import tokenizers
  import transformers

  part = {"intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
  pieces = json.loads((DATA / "siglip/tokenizer.json").read_text())["model"]["vocab"]
  vocabulary = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
  vocabulary += [(word, score) for word, score in pieces if word not in dict(vocabulary)]
  tokenizer = tokenizers.Tokenizer(tokenizers.models.Unigram(vocabulary, unk_id=3))
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
  tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
    "<s> $A </s>", "<s> $A </s> </s> $B </s>", [("<s>", 0), ("</s>", 2)]
  )
  tokenizer = transformers.XLMRobertaTokenizerFast(tokenizer_object=tokenizer, model_max_length=16)
  tokenizer.save_pretrained(folder)
  config = transformers.MetaClip2Config(
    text_config={
      **part, "hidden_size": 40, "vocab_size": len(tokenizer), "max_position_embeddings": 16, "eos_token_id": 2,
      "bos_token_id": 0, "hidden_act": "gelu",
    },
    vision_config={**part, "hidden_size": 48, "image_size": 32, "patch_size": 8, "hidden_act": "gelu"},
    projection_dim=36,
  )  # fmt: skip
  model = randomise(transformers.MetaClip2Model(config), seed)
  copy.deepcopy(model).half().save_pretrained(folder)
  processor = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
  processor.save_pretrained(folder)
  pictures = processor(images=images, return_tensors="pt", input_data_format="channels_last")["pixel_values"]
  ids = tokenizer(TEXTS, padding="max_length", max_length=16, truncation=True, return_tensors="pt")["input_ids"]
  cut = [len(x) > 16 for x in tokenizer(TEXTS)["input_ids"]]
  features = lambda x: model.get_text_features(input_ids=x)
  save(
    folder,
    pictures,
    model,
    lambda x: model.get_image_features(pixel_values=x),
    texts=(ids, cut, features),
    scale=(np.exp(2.25), 0.0),
  )


def open_clip(folder, images, seed, model_cfg, preprocess=(), tokenizer="clip_openclip"):
  import open_clip as library
  import safetensors.torch

  shutil.copytree(DATA / tokenizer, folder, ignore=shutil.ignore_patterns("*.npz", "*.safetensors", "*config.json"))
  shutil.copy(DATA / tokenizer / "tokenizer_config.json", folder)
  merges = json.loads((folder / "tokenizer.json").read_text())["model"]["merges"]
  text = model_cfg["text_cfg"]
  if tokenizer.startswith("clip"):
    path = folder.parent / "bpe.txt.gz"
    lines = [" ".join(merge) if isinstance(merge, list) else merge for merge in merges]
    path.write_bytes(gzip.compress("\n".join(["#version", *lines]).encode()))
    tokenise = library.tokenizer.SimpleTokenizer(str(path), context_length=text["context_length"])
    path.unlink()
    counts = [len(tokenise.encode(x)) + 2 for x in TEXTS]
    text["vocab_size"] = tokenise.vocab_size
  else:
    kwargs = text["tokenizer_kwargs"]
    tokenise = library.tokenizer.HFTokenizer(str(folder), context_length=text["context_length"], **kwargs)
    counts = [len(tokenise.tokenizer(tokenise.clean_fn(x))["input_ids"]) for x in TEXTS]
    text["vocab_size"] = len(tokenise.tokenizer)
  made = dict(model_cfg)
  custom = made.pop("custom_text", False)
  model = randomise((library.CustomTextCLIP if custom else library.CLIP)(**made), seed)
  safetensors.torch.save_file(
    {name: x.half().contiguous() for name, x in model.state_dict().items()}, folder / "open_clip_model.safetensors"
  )
  preprocess = dict(preprocess)
  (folder / "open_clip_config.json").write_text(
    json.dumps({"model_cfg": model_cfg, "preprocess_cfg": preprocess}, indent=1)
  )
  size = model_cfg["vision_cfg"]["image_size"]
  transform = library.image_transform(size, is_train=False, **preprocess)
  pictures = torch.stack([transform(image) for image in images])
  ids = tokenise(TEXTS)
  cut = [count > text["context_length"] for count in counts]
  scale = (np.exp(2.25), -3.0 if "init_logit_bias" in model_cfg else 0.0)
  more = {}
  if preprocess.get("resize_mode") == "squash":
    more = {"long_side_embeds": long_side(model.visual, model_cfg, transform.transforms[-1], images, 44)}
  save(folder, pictures, model, model.encode_image, texts=(ids, cut, model.encode_text), scale=scale, more=more)


@torch.inference_mode()
def long_side(visual, cfg, normalise, images, size):
  """Returns what timm makes of pictures that keep their aspect ratio, as ILIAS prepares them."""
  from timm.models import _registry
  from torchvision.transforms.functional import pad, to_tensor

  kept = visual.trunk.head.out_features if hasattr(visual.trunk.head, "out_features") else 0
  create = _registry._model_entrypoints[cfg["vision_cfg"]["timm_model_name"]]
  trunk = create(dynamic_img_size=True, num_classes=kept, global_pool="map").eval()
  trunk.load_state_dict(visual.trunk.state_dict())
  found = []
  for image in images:
    ratio = image.height / image.width
    sides = (size, int(size * ratio)) if ratio <= 1 else (int(size / ratio), size)
    x = normalise(to_tensor(image.resize([max(1, side) for side in sides])))
    more = [-side % 8 for side in x.shape[:0:-1]]
    x = pad(x, [more[0] // 2, more[1] // 2, more[0] - more[0] // 2, more[1] - more[1] // 2])
    found.append(trunk(x[None])[0])
  return unit(torch.stack(found))


def trunk(name, kind, **settings):
  """Registers a small model of timm under a name that says what it is."""
  from timm.layers import LayerNorm
  from timm.models import _registry, eva, vision_transformer

  made = {"Eva": eva.Eva, "Vit": vision_transformer.VisionTransformer}[kind]
  epsilon = settings.pop("epsilon", 1e-6)

  def create(pretrained=False, **kwargs):
    kwargs = {key: value for key, value in kwargs.items() if not key.startswith(("pretrained", "cache"))}
    model = made(**{**settings, "norm_layer": lambda *a, **k: LayerNorm(*a, eps=epsilon, **k), **kwargs})
    model.default_cfg = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    return model

  _registry._model_entrypoints[name] = create
  return {"timm_model_name": name, "image_size": settings["img_size"]}


def pe_core(folder, images, seed):
  vision = trunk(
    "vit_pe_core_small_patch8_32", "Eva", img_size=32, patch_size=8, embed_dim=48, depth=3, num_heads=6,
    mlp_ratio=3.0, attn_type="rope", use_pre_transformer_norm=True, use_rot_pos_emb=True, ref_feat_shape=(4, 4),
    rope_grid_offset=1.0, rope_grid_indexing="xy", attn_pool_num_heads=8, attn_pool_mlp_ratio=4.0, epsilon=1e-5,
  )  # fmt: skip
  vision |= {"timm_pool": "map", "timm_proj": None}
  cfg = {"embed_dim": 40, "vision_cfg": vision, "text_cfg": dict(CLIP_TEXT), "custom_text": True}
  preprocess = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bilinear", "resize_mode": "squash"}
  open_clip(folder, images, seed, cfg, preprocess)


def open_clip_siglip(folder, images, seed):
  vision = trunk(
    "vit_small_patch8_siglip_32", "Vit", img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=6,
    class_token=False, global_pool="map",
  )  # fmt: skip
  vision |= {"timm_pool": "map", "timm_proj": "none"}
  text = {
    **{"context_length": 16, "width": 40, "heads": 4, "layers": 2, "hf_tokenizer_name": "beside"},
    **{"tokenizer_kwargs": {"clean": "canonicalize"}, "no_causal_mask": True, "proj_bias": True, "pool_type": "last"},
    **{"norm_kwargs": {"eps": 1e-6}, "act_kwargs": {"approximate": "tanh"}},
  }
  cfg = {"embed_dim": 48, "init_logit_bias": -10, "custom_text": True, "vision_cfg": vision, "text_cfg": text}
  preprocess = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic", "resize_mode": "squash"}
  open_clip(folder, images, seed, cfg, preprocess, "siglip2_gemma")


def open_clip_trunk(folder, images, seed):
  vision = trunk(
    "vit_small_patch8_clip_quickgelu_32", "Vit", img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=6,
    pre_norm=True, act_layer="quick_gelu", epsilon=1e-5,
  )  # fmt: skip
  vision |= {"timm_pool": "avg", "timm_proj": "linear", "timm_proj_bias": True}
  cfg = {"embed_dim": 36, "vision_cfg": vision, "text_cfg": {**CLIP_TEXT, "no_causal_mask": True}, "custom_text": True}
  open_clip(folder, images, seed, cfg, {"resize_mode": "longest", "fill_color": 90})


def open_clip_plain(folder, images, seed, custom=False, quick=True, **vision):
  vision = {"image_size": 30, "patch_size": 7, "width": 64, "head_width": 16, "layers": 2, "mlp_ratio": 2.0, **vision}
  cfg = {"embed_dim": 36, "quick_gelu": quick, "vision_cfg": vision, "text_cfg": {**CLIP_TEXT, "mlp_ratio": 3.0}}
  if custom:
    cfg["text_cfg"] |= {"no_causal_mask": True, "pool_type": "last", "ls_init_value": 0.5}
  open_clip(folder, images, seed, cfg | ({"custom_text": True} if custom else {}))


MAKERS = {
  "dinov3": dinov3,
  "dinov3_gated": lambda *a: dinov3(
    *a, use_gated_mlp=True, hidden_act="silu", query_bias=False, value_bias=False, rope_theta=30.0
  ),
  "metaclip2": metaclip2,
  "open_clip": open_clip_plain,
  "open_clip_mean": lambda *a: open_clip_plain(
    *a, custom=True, quick=False, pool_type="avg", final_ln_after_pool=True, no_ln_pre=True, ls_init_value=0.5
  ),
  "open_clip_trunk": open_clip_trunk,
  "open_clip_siglip": open_clip_siglip,
  "pe_core": pe_core,
}


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("out", type=pathlib.Path)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--images", type=pathlib.Path, default=DATA / "images")
  parser.add_argument("--only", nargs="*", choices=MAKERS, default=MAKERS)
  flags = parser.parse_args()
  images = [Image.open(path).convert("RGB") for path in sorted(flags.images.iterdir())]
  for name in flags.only:
    folder = flags.out / name
    shutil.rmtree(folder, ignore_errors=True)
    flags.out.mkdir(parents=True, exist_ok=True)
    MAKERS[name](folder, images, flags.seed)
    print(name, sum(path.stat().st_size for path in folder.iterdir()), "bytes")


if __name__ == "__main__":
  main()
