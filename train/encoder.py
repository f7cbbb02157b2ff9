"""Trains the demo's small CLIP:  python -m train.encoder --config configs/demo_encoder.py [--workdir runs/demo_encoder]

The result is a folder with the files of any CLIP on the hub, which `load_encoder` opens.
"""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tqdm
from absl import app, flags
from ml_collections import ConfigDict, config_flags

import configs
from qat_jax import stages
from qat_jax.adaptation import normalise
from qat_jax.datasets import decode
from qat_jax.datasets.toybox import captions as toybox_captions
from qat_jax.datasets.toybox import source as toybox
from qat_jax.encoders import families, weights
from qat_jax.encoders.inputs import Pixels, read_pixels
from qat_jax.encoders.tower import Text, TextTower, Vision, VisionTower
from qat_jax.runs import end_on_signals, explained
from train.losses import contrastive
from train.step import make_optimiser
from train.vocabulary import write_tokenizer

FLAGS = flags.FLAGS


def main(argv: list[str]) -> None:
  """Parses flags; `train` does the work."""
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments {argv[1:]}")
  with explained():
    train(FLAGS.config, pathlib.Path(FLAGS.workdir))


def train(config: ConfigDict, workdir: pathlib.Path) -> pathlib.Path:
  """Trains a CLIP from scratch and returns the folder it is in.

  Raises ValueError where the data holds fewer images than a batch.
  """
  source = toybox.source(config.data.split, workdir / "data", config.data.name)
  if len(source) < config.train.batch_size:
    raise ValueError(f"train.batch_size is {config.train.batch_size}, but there are only {len(source)} images")
  out = pathlib.Path(config.out or workdir / "clip")
  out.mkdir(parents=True, exist_ok=True)
  tokenizer = write_tokenizer(out, toybox_captions.vocabulary(), config.model.text.tokens)
  processor = write_processor(out, config.model.vision)
  clip = make_config(config.model, len(tokenizer), tokenizer.eos_token_id)
  vision, text = families.towers(clip)
  assert text is not None  # a CLIP has both
  records = [source[i] for i in range(len(source))]
  images = [decode(record) for record in records]
  captions = [record["caption"] for record in records]
  pixels = np.concatenate([preprocessed(processor, images[i : i + 512]) for i in range(0, len(images), 512)])
  tokens = tokenizer(captions, padding="longest", return_tensors="np")
  _, meaning = np.unique(captions, return_inverse=True)
  params = fit(vision, text, pixels, tokens["input_ids"], meaning, config)
  clip.save_pretrained(out)
  weights.save(out, params, vision, clip.model_type)
  return out


def fit(
  vision: Vision, text: Text, pixels: np.ndarray, ids: np.ndarray, meaning: np.ndarray, config: ConfigDict
) -> dict:
  """Returns parameters trained with the symmetric contrastive loss; equal captions are no negatives of each other."""
  settings = config.train
  optimiser = make_optimiser(settings.steps, settings.learning_rate, 1e-5, settings.warmup_steps, settings.weight_decay)
  images, texts = VisionTower(vision), TextTower(text)

  def loss(params: dict, pixels: jax.Array, ids: jax.Array, meaning: jax.Array) -> jax.Array:
    image_BD = normalise(jnp.asarray(images.apply({"params": params["vision"]}, pixels.astype(jnp.float32))))
    text_BD = normalise(jnp.asarray(texts.apply({"params": params["text"]}, ids)))
    return contrastive(image_BD @ text_BD.T, meaning, jnp.exp(-params["logit_scale"]))

  @jax.jit
  def step(params: dict, state: optax.OptState, *batch: jax.Array) -> tuple[dict, optax.OptState, jax.Array]:
    value, gradient = jax.value_and_grad(loss)(params, *batch)
    update, state = optimiser.update(gradient, state, params)
    params = optax.apply_updates(params, update)
    return params | {"logit_scale": jnp.minimum(params["logit_scale"], jnp.log(100.0))}, state, value

  key_vision, key_text = jax.random.split(jax.random.key(config.seed))
  params = {
    "vision": jax.jit(images.init)(key_vision, jnp.float32(pixels[:1]))["params"],
    "text": jax.jit(texts.init)(key_text, ids[:1])["params"],
    "logit_scale": jnp.asarray(-np.log(settings.temperature), jnp.float32),
  }
  state = optimiser.init(params)
  bar = tqdm.trange(settings.steps, desc="encoder", unit="step", mininterval=5)
  for number in bar:
    rng = np.random.Generator(np.random.Philox(key=[config.seed, number]))
    rows = rng.choice(len(pixels), settings.batch_size, replace=False)
    params, state, value = step(params, state, *(jnp.asarray(x[rows]) for x in (pixels, ids, meaning)))
    if number % 50 == 49:
      bar.set_postfix(loss=f"{float(value):.3f}")
      if not np.isfinite(float(value)):
        raise FloatingPointError(f"the loss is {float(value)} at step {number + 1}; lower train.learning_rate")
  return params


def make_config(model: ConfigDict, vocabulary: int, end: int) -> Any:
  """Returns transformers' config of the CLIP; `end` is the token whose place gives the text's feature."""
  from transformers import CLIPConfig

  def tower(part: ConfigDict) -> dict:
    return {
      "hidden_size": part.hidden,
      "intermediate_size": part.feed_forward,
      "num_hidden_layers": part.layers,
      "num_attention_heads": part.heads,
      "projection_dim": model.projection,
    }

  text = {"vocab_size": vocabulary, "max_position_embeddings": model.text.tokens, "hidden_act": "gelu"}
  text |= {"eos_token_id": end, "pad_token_id": end, "bos_token_id": end - 1}
  vision = {"image_size": model.vision.crop, "patch_size": model.vision.patch, "hidden_act": "gelu"}
  return CLIPConfig(
    text_config=tower(model.text) | text,
    vision_config=tower(model.vision) | vision,
    projection_dim=model.projection,
  )


def preprocessed(processor: Pixels, images: list) -> np.ndarray:
  """Returns the pixels that the image tower takes, in half precision to save memory."""
  return np.asarray(processor.normalise(jnp.stack([processor.prepare(image) for image in images])), np.float16)


def write_processor(folder: pathlib.Path, vision: ConfigDict) -> Pixels:
  """Writes how pictures are prepared: resized to `image`, the middle `crop` kept, channels scaled to [−1, 1]."""
  content = {
    "image_processor_type": "CLIPImageProcessor",
    "do_resize": True,
    "size": {"shortest_edge": vision.image},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": vision.crop, "width": vision.crop},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
    "do_convert_rgb": True,
  }
  stages.write_json(folder / "preprocessor_config.json", content)
  return read_pixels(folder, "clip")


if __name__ == "__main__":
  end_on_signals()
  config_flags.DEFINE_config_file("config", None, "The recipe, a file in configs/.", lock_config=True)
  flags.DEFINE_string("workdir", "runs/demo_encoder", "Where the data and, unless config.out says else, the CLIP go.")
  flags.mark_flag_as_required("config")
  app.run(main, flags_parser=configs.parsed)
