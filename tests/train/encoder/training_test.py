import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from configs.demo_encoder import get_config
from qat_jax.datasets.toybox import captions as toybox_captions
from qat_jax.datasets.toybox import source as toybox
from qat_jax.encoders import load_encoder
from qat_jax.encoders.encoder import TOY_CLIP
from train.encoder.training import Batches, train_encoder, write_processor
from train.encoder.vocabulary import byte_letters, byte_pairs, write_tokenizer


@pytest.fixture
def config():
  config = get_config()
  config.data.name = "tiny"
  config.model.vision.layers = config.model.text.layers = 1
  config.train.update({"batch_size": 16, "steps": 2})
  return config


def test_merging_the_commonest_pair_first_makes_every_word_one_token():
  # By hand: "a b</w>" is in both words, so it goes first; then "x ab</w>".
  assert byte_pairs(["ab", "xab"]) == [("a", "b</w>"), ("x", "ab</w>")]


def test_bytes_have_the_letters_that_transformers_wrote_into_the_demos_vocabulary():
  assert byte_letters() == list(json.loads((TOY_CLIP / "vocab.json").read_text()))[:256]


def test_every_word_of_the_toybox_is_one_token_and_other_text_is_not_lost(tmp_path):
  words = toybox_captions.vocabulary()
  tokenizer = write_tokenizer(tmp_path, words, 32)
  assert all(len(ids) == 3 for ids in tokenizer(words)["input_ids"])  # start, the word, end
  assert tokenizer.decode(tokenizer("a zebra, größer")["input_ids"], skip_special_tokens=True) == "a zebra , größer"


def test_a_short_run_writes_a_clip_that_loads(config, tmp_path):
  config.out = str(tmp_path / "clip")
  encoder = load_encoder(str(train_encoder(config, tmp_path)), batch_size=2)
  assert encoder.texts(["a red star"]).shape == (1, config.model.projection)


def test_a_batch_larger_than_the_data_is_refused(config, tmp_path):
  config.train.batch_size = 100
  with pytest.raises(ValueError, match=r"batch_size is 100, but there are only 24 images"):
    train_encoder(config, tmp_path)


def test_a_batch_is_the_same_every_time_and_the_next_one_another(config, tmp_path):
  source = toybox.source(config.data.split, config.data.name)
  tokenizer = write_tokenizer(tmp_path, toybox_captions.vocabulary(), 32)
  batches = Batches(source, write_processor(tmp_path, config.model.vision), tokenizer, 20, seed=0)
  pixels, ids, meaning = batches.batch(3, 16)
  assert pixels.shape == (16, 60, 60, 3)
  assert pixels.dtype == np.uint8
  assert ids.shape == (16, 20)
  for first, again, other in zip((pixels, ids, meaning), batches.batch(3, 16), batches.batch(4, 16), strict=True):
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_a_caption_tells_of_the_scene_of_its_own_picture(config, tmp_path):
  source = toybox.source(config.data.split, config.data.name)
  tokenizer = write_tokenizer(tmp_path, toybox_captions.vocabulary(), 36)
  batches = Batches(source, write_processor(tmp_path, config.model.vision), tokenizer, 28, seed=0)
  light_of = {"shady": [], "sunny": []}
  for number in range(10):
    pixels, ids, _ = batches.batch(number, 16)
    for picture, caption in zip(pixels, tokenizer.batch_decode(ids, skip_special_tokens=True), strict=True):
      for word in light_of.keys() & set(caption.split()):
        light_of[word].append(picture[:4].mean())
  assert min(map(len, light_of.values())) > 5
  assert np.mean(light_of["sunny"]) > np.mean(light_of["shady"]) + 40


@pytest.mark.parametrize(("image", "crop"), [(96, 60), (64, 80)])
def test_pictures_of_another_size_than_the_toybox_draws_are_refused(config, tmp_path, image, crop):
  config.model.vision.update({"image": image, "crop": crop})
  with pytest.raises(ValueError, match=f"image is {image} and crop {crop}; the toybox draws pictures of 64"):
    train_encoder(config, tmp_path)


def test_a_batch_that_devices_cannot_share_is_refused(config, tmp_path):
  config.train.batch_size = 18
  with pytest.raises(ValueError, match=r"batch_size is 18, no multiple of 4 devices"):
    train_encoder(config, tmp_path)


def test_devices_that_share_a_batch_learn_what_one_learns(config, tmp_path):
  train_encoder(config, tmp_path)
  shared = load_file(tmp_path / "clip" / "model.safetensors")
  train_encoder(config, tmp_path, jax.devices()[:1])
  for name, alone in load_file(tmp_path / "clip" / "model.safetensors").items():
    np.testing.assert_allclose(shared[name], alone, atol=1e-4, err_msg=name)
