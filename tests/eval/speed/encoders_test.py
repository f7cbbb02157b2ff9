import pathlib
import sys

import pytest

from eval.speed import encoders
from qat_jax.encoders import load_encoder
from qat_jax.encoders.settings import Layers, Vision

DATA = pathlib.Path(__file__).parents[2] / "data/reference_encoders"


@pytest.fixture
def small():
  part = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1}
  text = {**part, "max_position_embeddings": 8, "vocab_size": 50, "model_type": "siglip_text_model"}
  vision = {**part, "image_size": 512, "patch_size": 256, "model_type": "siglip_vision_model"}
  return {"model_type": "siglip", "text_config": text, "vision_config": vision}


def test_a_checkpoint_of_random_weights_loads_and_encodes(small, tmp_path):
  size = encoders.write_checkpoint(tmp_path / "small", small)
  assert 0 < (tmp_path / "small/model.safetensors").stat().st_size - size < 10_000  # the header
  assert load_encoder(str(tmp_path / "small"), batch_size=2).texts(["a cat"]).shape == (1, 16)
  seconds, peak = encoders.loading(tmp_path / "small")
  assert seconds > 0 and peak >= 0


def test_the_table_of_errors_has_a_row_a_checkpoint_and_keeps_what_it_promises():
  for dtype, most in (("float32", 1e-5), ("bfloat16", 0.03)):
    assert max(encoders.errors(DATA / "clip_openclip", dtype).values()) < most


def test_a_tower_is_timed():
  seconds, cores = encoders.our_tower(2, Vision(Layers(8, 1, 2, 16, "gelu", 1e-5), 4, 2, "class"))()
  assert 0 < seconds < 60 and cores > 0


def test_a_python_without_torch_is_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(encoders, "our_tower", lambda *_: lambda: (1.0, 1.0))
  with pytest.raises(ValueError, match=r"could not run torch; install torch, transformers"):
    encoders.speed(sys.executable, 2, 1)
