"""The encoder as the pipelines use it, on the demo's small CLIP."""

import pathlib
import shutil
import sys

import jax
import numpy as np
import pytest
from flax.serialization import msgpack_serialize
from flax.traverse_util import unflatten_dict
from PIL import Image
from safetensors.numpy import load_file

from qat_jax.datasets.toybox.objects import families
from qat_jax.datasets.toybox.render import render
from qat_jax.encoders import load_encoder, tower
from qat_jax.encoders import pixels as preparation
from qat_jax.encoders.encoder import TOY_CLIP
from qat_jax.encoders.settings import Layers, Vision
from qat_jax.encoders.tower import VisionTower

DATA = pathlib.Path(__file__).parents[2] / "data"
TEXTS = ["a red star", "a photo of a blue circle, a green box on the left", "eine Katze auf der Straße"]


@pytest.fixture(scope="module")
def encoder():
  return load_encoder("toy_clip", batch_size=8)


@pytest.fixture(scope="module")
def images():
  return [render(members[0], 0) for members in families()[:11]]


def test_features_are_unit_float32_of_the_width_it_says(encoder, images):
  for features in (encoder.images(images), encoder.texts(TEXTS)):
    assert features.dtype == np.float32
    assert features.shape[1] == encoder.width
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-5)


def test_the_demos_features_are_those_that_transformers_flax_model_gave(encoder):
  known = np.load(DATA / "toy_clip.npz")
  images = [Image.open(path).convert("RGB") for path in sorted((DATA / "reference_encoders/images").iterdir())]
  np.testing.assert_allclose(encoder.images(images), known["image_embeds"], atol=1e-5)
  np.testing.assert_allclose(encoder.texts(known["texts"].tolist()), known["text_embeds"], atol=1e-5)


def test_an_item_alone_has_the_feature_it_has_in_a_batch(encoder, images):
  whole = encoder.images(images)
  np.testing.assert_allclose(encoder.images(images[9:10]), whole[9:10], atol=2e-6)
  np.testing.assert_allclose(encoder.texts(TEXTS[1:2]), encoder.texts(TEXTS)[1:2], atol=2e-6)


def test_no_batch_size_compiles_anything_twice(encoder, images):
  for count in (1, 3, 8, 11):
    assert len(encoder.images(images[:count])) == count
    assert len(encoder.texts(["a heart"] * count)) == count
  assert encoder.image_features._cache_size() == 1
  assert encoder.text_features._cache_size() == 1


def test_nothing_in_gives_nothing_out(encoder):
  assert encoder.images([]).shape == encoder.texts([]).shape == (0, encoder.width)


def test_images_of_any_size_are_taken(encoder):
  shapes = [(100, 40), (30, 64), (1, 90), (90, 3)]
  assert encoder.images([Image.new("RGB", shape) for shape in shapes]).shape == (4, encoder.width)


@pytest.mark.parametrize("crop", [32, 24, 40])
@pytest.mark.parametrize("size", [(900, 70), (70, 900), (33, 300), (1001, 100)])
def test_of_a_long_strip_the_pixels_are_those_of_the_whole_resized_and_cropped(monkeypatch, size, crop):
  noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
  pixels = preparation.Pixels(3, 1 / 255, (0.5,) * 3, (0.5,) * 3, (crop, crop), 32)
  part = pixels.prepare(Image.fromarray(noise)).astype(int)
  monkeypatch.setattr(preparation, "WHOLE_SIDES", 10**9)
  whole = pixels.prepare(Image.fromarray(noise)).astype(int)
  assert part.shape == (crop, crop, 3) and np.abs(part - whole).max() <= 1


@pytest.mark.parametrize("size", [(100_000, 1), (1, 100_000)])
def test_of_a_long_strip_no_more_is_resized_than_is_kept(monkeypatch, size):
  sizes, resize = [], Image.Image.resize
  monkeypatch.setattr(
    Image.Image, "resize", lambda image, size, *more: sizes.append(size) or resize(image, size, *more)
  )
  preparation.Pixels(3, 1 / 255, (0.5,) * 3, (0.5,) * 3, (64, 64), 64).prepare(Image.new("RGB", size))
  assert sizes == [(64, 64)]


def test_a_batch_in_parts_has_the_features_of_the_whole(monkeypatch):
  settings = Vision(Layers(8, 1, 2, 16, "gelu", 1e-5), 4, 2, "class")
  pixels = jax.random.normal(jax.random.key(0), (6, 8, 8, 3))
  params = VisionTower(settings).init(jax.random.key(1), pixels)["params"]
  whole = VisionTower(settings).apply({"params": params}, pixels)
  for most in (1, 2 * settings.tokens, 5 * settings.tokens):  # 1, 2 and 3 items a part: what 6 is a multiple of
    monkeypatch.setattr(tower, "PART", most)
    np.testing.assert_allclose(tower.in_parts(VisionTower(settings), params, pixels, settings.tokens), whole, atol=1e-6)


def test_pictures_may_be_prepared_beforehand_in_other_threads(encoder, images):
  prepared = [encoder.prepare(image) for image in images[:3]]
  assert all(pixels.dtype == np.uint8 for pixels in prepared)
  np.testing.assert_array_equal(encoder.images(prepared), encoder.images(images[:3]))


def test_captions_that_are_too_long_are_cut_and_counted(encoder):
  before = encoder.truncated
  longest = " ".join(["red"] * (encoder.max_tokens - 2))
  encoder.texts(["a red star", longest])
  assert encoder.truncated == before
  features = encoder.texts([longest + " star", longest + " circle"])
  assert encoder.truncated == before + 2
  np.testing.assert_array_equal(features[0], features[1])


def test_the_demo_encoder_has_seen_the_world_coarsely(encoder):
  toys = [members[0] for members in families()[2000:2256]]
  images = encoder.images([render(toy, 0) for toy in toys])
  texts = encoder.texts([f"a {toy.colour} {toy.kind}" for toy in toys])
  looks = np.array([f"{toy.colour} {toy.kind}" for toy in toys])
  found = looks[(texts @ images.T).argmax(axis=1)]
  assert np.mean(found == looks) > 0.15


def test_all_devices_give_the_features_of_one(encoder, images):
  shared = load_encoder("toy_clip", batch_size=8, devices="all")
  np.testing.assert_allclose(shared.images(images), encoder.images(images), atol=2e-6)
  np.testing.assert_allclose(shared.texts(TEXTS), encoder.texts(TEXTS), atol=2e-6)
  pixels = jax.device_put(np.stack([encoder.prepare(image) for image in images[:8]]), shared._rows)
  assert len(shared.image_features(shared.params["vision"], pixels).sharding.device_set) == 4


def test_a_batch_that_devices_cannot_share_is_refused_with_those_that_they_can():
  with pytest.raises(ValueError, match=r"batch_size is 6, no multiple of 4 devices; use 4 or 8"):
    load_encoder("toy_clip", batch_size=6, devices="all")


def test_half_precision_is_near_and_of_half_the_size(encoder, images):
  half = load_encoder("toy_clip", batch_size=8, dtype="bfloat16")
  assert half.images(images).dtype == np.float32
  np.testing.assert_allclose(half.images(images), encoder.images(images), atol=1e-2)
  size = lambda params: sum(x.nbytes for x in jax.tree.leaves(params))
  assert size(half.params) < 0.55 * size(encoder.params)
  with pytest.raises(ValueError, match=r"dtype is 'float16'; wanted 'float32' or 'bfloat16'"):
    load_encoder("toy_clip", dtype="float16")


def test_a_copied_folder_gives_the_same_features_and_revision(encoder, images, tmp_path):
  copy = load_encoder(str(shutil.copytree(TOY_CLIP, tmp_path / "copy")), batch_size=8)
  assert copy.revision == encoder.revision
  np.testing.assert_array_equal(copy.images(images[:3]), encoder.images(images[:3]))
  (tmp_path / "copy" / "config.json").write_text((TOY_CLIP / "config.json").read_text() + "\n")
  assert load_encoder(str(tmp_path / "copy")).revision != encoder.revision


def test_the_weights_are_small_enough_to_be_carried_along():
  assert sum(path.stat().st_size for path in TOY_CLIP.iterdir()) < 5e6


def test_neither_pytorch_nor_a_flax_model_of_transformers_is_loaded(encoder):
  assert "torch" not in sys.modules
  assert not [name for name in sys.modules if name.startswith("transformers.") and "modeling_flax" in name]


def test_older_checkpoints_with_flax_weights_alone_give_the_same_features(encoder, images, tmp_path):
  folder = shutil.copytree(TOY_CLIP, tmp_path / "flax")
  tree = {}
  for name, x in load_file(folder / "model.safetensors").items():
    *parents, last = name.split(".")
    if last == "weight":
      last = "embedding" if "_embedding" in name and x.ndim == 2 else "kernel" if x.ndim > 1 else "scale"
      x = x.transpose(2, 3, 1, 0) if x.ndim == 4 else x.T if last == "kernel" else x
    tree[*parents, last] = np.ascontiguousarray(x)
  (folder / "model.safetensors").unlink()
  (folder / "flax_model.msgpack").write_bytes(msgpack_serialize(unflatten_dict(tree)))
  loaded = load_encoder(str(folder), batch_size=8)
  np.testing.assert_array_equal(loaded.images(images[:3]), encoder.images(images[:3]))
  np.testing.assert_array_equal(loaded.texts(TEXTS), encoder.texts(TEXTS))
