"""Small random checkpoints of every family, against what the reference implementation computes from them."""

import functools
import pathlib
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from qat_jax.encoders import load_encoder
from qat_jax.encoders.families import read_encoder_config, towers
from qat_jax.encoders.tower import VisionTower

DATA = pathlib.Path(__file__).parents[2] / "data/reference_encoders"
PLAIN = ("clip", "clip_openclip", "siglip", "siglip2_gemma", "dinov2", "dinov2_registers")
WITHOUT_TEXTS = ("dinov2", "dinov2_registers", "dinov3", "dinov3_gated")
# Made by .ci/reference_encoders.py, but for NaFlex.
OPEN = ("open_clip", "open_clip_mean", "open_clip_trunk", "open_clip_siglip", "pe_core")
FOLDERS = (*PLAIN, "dinov3", "dinov3_gated", "metaclip2", "siglip2_naflex", *OPEN)
# Rounding the weights of dinov2_registers to bfloat16 moves its features by 0.028, whatever is computed with them.
HALF = {"dinov2_registers": 0.04}


@pytest.fixture(params=FOLDERS)
def name(request):
  return request.param


# Kept by name, not by fixtures of the module: where workers share the tests, those were once another folder's.
loaded = functools.cache(lambda name: load_encoder(str(DATA / name), batch_size=8))


@pytest.fixture
def known(name):
  return dict(np.load(DATA / name / "vectors.npz"))


@pytest.fixture
def encoder(name):
  return loaded(name)


@pytest.fixture(scope="module")
def images():
  return [Image.open(path).convert("RGB") for path in sorted((DATA / "images").iterdir())]


def error(got, wanted):
  """Returns the largest difference, relative to the largest magnitude."""
  return np.abs(got - wanted).max() / np.abs(wanted).max()


def test_pictures_become_the_references_pixels(name, encoder, images, known):
  prepared = jax.tree.map(lambda *rows: np.stack(rows), *map(encoder.prepare, images))
  if name == "siglip2_naflex":
    patches, grids = encoder._pixels.normalise(prepared)
    np.testing.assert_array_equal(grids, known["spatial_shapes"])
    there = known["pixel_attention_mask"] > 0
    np.testing.assert_allclose(patches[there], known["pixel_values"][there], atol=1e-6)
    return
  got = np.asarray(encoder._pixels.normalise(prepared)).transpose(0, 3, 1, 2)
  steps = np.float32(encoder._pixels.std).reshape(3, 1, 1) * (got - known["pixel_values"])
  assert np.abs(steps).max() < (1 / 255 if name in PLAIN else 1e-5)


def test_image_features_are_the_references(encoder, images, known):
  assert error(encoder.images(images), known["image_embeds"]) < 1e-5


def test_text_features_and_ids_are_the_references(name, encoder, known):
  if name in WITHOUT_TEXTS:
    with pytest.raises(ValueError, match=r"encodes images alone; for text queries take a CLIP or a SigLIP"):
      encoder.texts(["a cat"])
    return
  texts = known["texts"].tolist()
  ids, cut = encoder._tokens(texts)
  np.testing.assert_array_equal(ids, known["input_ids"])
  assert cut == known["truncated"].sum() > 0
  assert error(encoder.texts(texts), known["text_embeds"]) < 1e-5


def test_logits_are_the_references(name, encoder, images, known):
  if name in WITHOUT_TEXTS:
    return
  scale, bias = (np.float32(encoder.params.get(key, 0.0)) for key in ("logit_scale", "logit_bias"))
  logits = np.exp(scale) * encoder.images(images) @ encoder.texts(known["texts"].tolist()).T + bias
  assert error(logits, known["logits_per_image"]) < 1e-5


def test_pixels_of_another_size_meet_a_resampled_position_table(name, encoder, known):
  if "other_pixel_values" not in known:
    return
  vision, _ = towers(read_encoder_config(DATA / name))
  pixels = known["other_pixel_values"].transpose(0, 2, 3, 1)
  features = jax.jit(VisionTower(vision).apply)({"params": encoder.params["vision"]}, pixels)
  assert error(features / jnp.linalg.norm(features, axis=1, keepdims=True), known["other_image_embeds"]) < 1e-5


@pytest.mark.parametrize("name", [*PLAIN, "dinov3", "pe_core"])
def test_half_precision_is_within_its_rounding(name, images, known):
  half = load_encoder(str(DATA / name), batch_size=8, dtype="bfloat16")
  assert 1e-4 < error(half.images(images), known["image_embeds"]) < HALF.get(name, 0.02)
  if name not in WITHOUT_TEXTS:
    assert 1e-4 < error(half.texts(known["texts"].tolist()), known["text_embeds"]) < 0.02


@pytest.mark.parametrize("name", ["open_clip_siglip", "pe_core"])
def test_pictures_in_proportion_are_those_of_timm(name, images, known):
  encoder = load_encoder(str(DATA / name), batch_size=8, long_side=44)
  assert error(encoder.images(images), known["long_side_embeds"]) < 1e-5
  again = pickle.loads(pickle.dumps(encoder))
  assert again.revision == encoder.revision == load_encoder(str(DATA / name)).revision + "+long_side=44"
  with pytest.raises(ValueError, match=r"long_side is 5; wanted at least a patch, 8 pixels, or 0"):
    load_encoder(str(DATA / name), long_side=5)


@pytest.mark.parametrize("name", ["clip"])
def test_the_flax_model_of_transformers_agrees_where_there_is_one(name, encoder, images, known):
  transformers = pytest.importorskip("transformers")
  if int(transformers.__version__.split(".")[0]) > 4:
    pytest.skip("transformers 5 has no Flax models")

  class Clip(transformers.FlaxCLIPModel):
    """Starts at zero: drawing parameters, only to replace them, takes half a minute."""

    def init_weights(self, key, input_shape, params=None):
      shapes = jax.eval_shape(lambda key: super(Clip, self).init_weights(key, input_shape), key)
      return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

  features = np.asarray(jax.jit(Clip.from_pretrained(DATA / name).get_image_features)(known["pixel_values"]))
  assert error(encoder.images(images), features / np.linalg.norm(features, axis=1, keepdims=True)) < 1e-5


@pytest.mark.parametrize("name", PLAIN)
def test_the_image_processor_of_transformers_agrees_where_it_needs_no_pytorch(name, encoder, images):
  transformers = pytest.importorskip("transformers")
  kind = "Bit" if "dino" in name else "Siglip" if "siglip" in name else "CLIP"
  chosen = getattr(transformers, f"{kind}ImageProcessorPil", None) or getattr(transformers, f"{kind}ImageProcessor")
  processor = chosen.from_pretrained(DATA / name)
  wanted = processor(images=images, return_tensors="np", input_data_format="channels_last")["pixel_values"]
  pixels = np.stack([encoder.prepare(image) for image in images])
  got = np.asarray(encoder._pixels.normalise(pixels)).transpose(0, 3, 1, 2)
  np.testing.assert_allclose(got, wanted, atol=1e-6)
