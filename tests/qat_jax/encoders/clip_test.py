import json
import pathlib
import shutil
import sys

import numpy as np
import pytest
from flax.serialization import msgpack_restore, msgpack_serialize
from flax.traverse_util import flatten_dict
from PIL import Image
from safetensors.numpy import save_file

from qat_jax.datasets.toybox.objects import families
from qat_jax.datasets.toybox.render import render
from qat_jax.encoders import load_encoder
from qat_jax.encoders.clip import TOY_CLIP


@pytest.fixture(scope="module")
def encoder():
  return load_encoder("toy_clip", batch_size=8)


@pytest.fixture(scope="module")
def images():
  return [render(members[0], 0) for members in families()[:11]]


TEXTS = ["a red star", "a photo of a blue circle, a green box on the left", "eine Katze auf der Straße"]


def test_features_are_unit_float32_of_the_width_it_says(encoder, images):
  for features in (encoder.images(images), encoder.texts(TEXTS)):
    assert features.dtype == np.float32
    assert features.shape[1] == encoder.width
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-5)


def test_an_item_alone_has_the_feature_it_has_in_a_batch(encoder, images):
  whole = encoder.images(images)
  np.testing.assert_allclose(encoder.images(images[9:10]), whole[9:10], atol=2e-6)
  np.testing.assert_allclose(encoder.texts(TEXTS[1:2]), encoder.texts(TEXTS)[1:2], atol=2e-6)


def test_no_batch_size_compiles_anything_twice(encoder, images):
  for count in (1, 3, 8, 11):
    assert len(encoder.images(images[:count])) == count
    assert len(encoder.texts(["a heart"] * count)) == count
  assert encoder._image_features._cache_size() == 1
  assert encoder._text_features._cache_size() == 1


def test_nothing_in_gives_nothing_out(encoder):
  assert encoder.images([]).shape == encoder.texts([]).shape == (0, encoder.width)


def test_images_of_any_size_are_taken(encoder):
  assert encoder.images([Image.new("RGB", (100, 40)), Image.new("RGB", (30, 64))]).shape == (2, encoder.width)


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


def test_a_copied_folder_gives_the_same_features_and_revision(encoder, images, tmp_path):
  copy = load_encoder(str(shutil.copytree(TOY_CLIP, tmp_path / "copy")), batch_size=8)
  assert copy.revision == encoder.revision
  np.testing.assert_array_equal(copy.images(images[:3]), encoder.images(images[:3]))
  (tmp_path / "copy" / "config.json").write_text((TOY_CLIP / "config.json").read_text() + "\n")
  assert load_encoder(str(tmp_path / "copy")).revision != encoder.revision


def test_the_weights_are_small_enough_to_be_carried_along():
  assert sum(path.stat().st_size for path in TOY_CLIP.iterdir()) < 4e6


def test_a_missing_folder_is_said_to_be_missing():
  with pytest.raises(FileNotFoundError, match=r"no folder '/nowhere/clip'"):
    load_encoder("/nowhere/clip")


def test_a_hub_name_that_cannot_be_had_says_what_to_do():
  with pytest.raises(FileNotFoundError, match=r"'someone/no-such-clip' is no folder, .*local folder"):
    load_encoder("someone/no-such-clip")


def test_a_model_of_another_kind_is_no_clip(tmp_path):
  (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
  with pytest.raises(ValueError, match=r"is a bert, not a CLIP"):
    load_encoder(str(tmp_path))


def test_a_folder_without_weights_is_named(tmp_path):
  folder = shutil.copytree(TOY_CLIP, tmp_path / "half")
  (folder / "flax_model.msgpack").unlink()
  with pytest.raises(FileNotFoundError, match=r"half' lacks a file of a CLIP"):
    load_encoder(str(folder))


def test_weights_in_the_layout_of_pytorch_give_the_same_features_without_pytorch(encoder, images, tmp_path):
  folder = pathlib.Path(shutil.copytree(TOY_CLIP, tmp_path / "torch"))
  (folder / "flax_model.msgpack").unlink()
  save_file(in_pytorch_layout(encoder._params), folder / "model.safetensors", metadata={"format": "pt"})
  loaded = load_encoder(str(folder), batch_size=8)
  np.testing.assert_array_equal(loaded.images(images[:3]), encoder.images(images[:3]))
  np.testing.assert_array_equal(loaded.texts(TEXTS), encoder.texts(TEXTS))
  assert "torch" not in sys.modules


def in_pytorch_layout(params):
  """Returns name → array as PyTorch saves them: kernels transposed and called weight, as are scales and embeddings."""
  found = {}
  for path, x in flatten_dict(params).items():
    x, *parents, last = np.asarray(x), *path
    if last == "kernel":
      x = x.transpose(3, 2, 0, 1) if x.ndim == 4 else x.T
    name = "weight" if last in ("kernel", "scale", "embedding") else last
    found[".".join([*parents, name])] = np.array(x, order="C")
  return found


def test_weights_that_lack_a_part_are_refused_with_its_name(tmp_path):
  path = pathlib.Path(shutil.copytree(TOY_CLIP, tmp_path / "towers")) / "flax_model.msgpack"
  params = msgpack_restore(path.read_bytes())
  del params["text_projection"]
  path.write_bytes(msgpack_serialize(params))
  with pytest.raises(ValueError, match=r"towers' lack text_projection/kernel"):
    load_encoder(str(path.parent))


def test_weights_cut_short_are_refused_by_name(tmp_path):
  path = pathlib.Path(shutil.copytree(TOY_CLIP, tmp_path / "cut")) / "flax_model.msgpack"
  path.write_bytes(path.read_bytes()[:1000])
  with pytest.raises(ValueError, match=r"cut' are damaged or do not fit"):
    load_encoder(str(path.parent))


def test_a_folder_without_a_tokenizer_is_named(tmp_path):
  folder = pathlib.Path(shutil.copytree(TOY_CLIP, tmp_path / "mute"))
  for name in ("vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json"):
    (folder / name).unlink()
  with pytest.raises(FileNotFoundError, match=r"mute' lacks a file of a CLIP: no tokenizer.json"):
    load_encoder(str(folder))
