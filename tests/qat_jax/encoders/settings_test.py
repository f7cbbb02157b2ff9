"""Every setting of a family shows in the features of the reference checkpoints."""

import copy
import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from qat_jax.encoders import load_encoder
from qat_jax.encoders.families import read_encoder_config, towers
from qat_jax.encoders.texts import CLEANING
from qat_jax.encoders.tower import TextTower, VisionTower

DATA = pathlib.Path(__file__).parents[2] / "data/reference_encoders"
ROPE = {"theta": 1000.0, "offset": 0.25, "span": 7.0, "columns_first": None, "neighbours": None}
# One setting other than it should be moves features by ten times what is asked of them; None: the other truth value.
MUTATIONS = {
  "dinov3": {
    "blocks": {"epsilon": 1e-6, "activation": "gelu_pytorch_tanh"},
    "rope": {**ROPE, "start": 0.0},
    "pixels": {"exact": False, "resample": 3, "mean": (0.5,) * 3},
  },
  "dinov3_gated": {"blocks": {"activation": "gelu"}, "rope": {"theta": 100.0}},
  "metaclip2": {"text": {"pool": "largest", "end": 3}, "words": {"causal": False}, "blocks": {"epsilon": 1e-6}},
  "siglip2_naflex": {
    "vision": {"resampling": "cubic smooth"},
    "words": {"activation": "gelu"},
    "pixels": {"resample": 3},
    "cleaning": "",
  },
  "open_clip": {
    "blocks": {"activation": "gelu", "epsilon": 1e-6, "heads": 8},
    "pixels": {"rounded": False, "resample": 2},
    "text": {"pool": "last"},
    "words": {"activation": "gelu"},
    "cleaning": "lower case",
  },
  "open_clip_mean": {
    "vision": {"norm_pooled": False, "pool": "class"},
    "words": {"causal": True},
    "text": {"pool": "largest"},
  },
  "open_clip_trunk": {
    "vision": {"pool": "class"},
    "blocks": {"activation": "gelu", "epsilon": 1e-6},
    "pixels": {"fill": 0},
  },
  "open_clip_siglip": {
    "blocks": {"activation": "gelu_pytorch_tanh", "epsilon": 1e-5},
    "pixels": {"resample": 2},
    "words": {"activation": "gelu", "causal": True},
    "text": {"pool": "largest"},
    "cleaning": "lower case",
  },
  "pe_core": {"vision": {"probe": (6, 192)}, "blocks": {"epsilon": 1e-6}, "rope": ROPE, "pixels": {"resample": 3}},
}


def mutated(encoder, images, texts, folder, part, changes):
  """Returns the features of pictures, or of texts, with one setting changed."""
  vision, text = towers(read_encoder_config(folder))
  pixels, words = encoder._pixels, copy.copy(encoder._tokens)
  if part == "pixels":
    pixels = dataclasses.replace(pixels, **changes)
  elif part == "cleaning":
    words._clean = CLEANING[changes]
  elif part == "vision":
    vision = dataclasses.replace(vision, **changes)
  elif part == "text":
    text = dataclasses.replace(text, **changes)
  elif part == "words":
    text = dataclasses.replace(text, blocks=dataclasses.replace(text.blocks, **changes))
  else:
    if part == "rope":
      changes = {"rope": dataclasses.replace(vision.blocks.rope, **changes)}
    vision = dataclasses.replace(vision, blocks=dataclasses.replace(vision.blocks, **changes))
  if part in ("text", "words", "cleaning"):
    features = jax.jit(TextTower(text).apply)({"params": encoder.params["text"]}, words(texts)[0])
  else:
    prepared = pixels.normalise(jax.tree.map(lambda *rows: np.stack(rows), *map(pixels.prepare, images)))
    features = jax.jit(VisionTower(vision).apply)({"params": encoder.params["vision"]}, prepared)
  return features / jnp.linalg.norm(features, axis=1, keepdims=True)


@pytest.mark.parametrize("name", MUTATIONS)
def test_one_wrong_setting_shows(name):
  encoder, known = load_encoder(str(DATA / name), batch_size=8), np.load(DATA / name / "vectors.npz")
  images = [Image.open(path).convert("RGB") for path in sorted((DATA / "images").iterdir())]
  for part, changes in MUTATIONS[name].items():
    for setting, value in changes.items() if isinstance(changes, dict) else [("", changes)]:
      texts = part in ("text", "words", "cleaning")
      if value is None:
        value = not getattr(towers(read_encoder_config(DATA / name))[0].blocks.rope, setting)
      change = {setting: value} if setting else value
      got = mutated(encoder, images, known["texts"].tolist() if texts else None, DATA / name, part, change)
      wanted = known["text_embeds" if texts else "image_embeds"]
      moved = np.abs(got - wanted).max() / np.abs(wanted).max()
      assert moved > 1e-4, (part, change, moved)
