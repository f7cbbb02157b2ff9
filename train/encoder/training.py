"""Pictures and captions of toys → a small CLIP, as a folder with the files of any CLIP on the hub."""

import functools
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tqdm
from jax.sharding import Mesh, PartitionSpec
from ml_collections import ConfigDict

from qat_jax import stages
from qat_jax.adaptation import normalise
from qat_jax.datasets.pictures import decode
from qat_jax.datasets.toybox import captions as toybox_captions
from qat_jax.datasets.toybox import source as toybox
from qat_jax.datasets.toybox.objects import families as families_of_toys
from qat_jax.datasets.toybox.render import SIZE
from qat_jax.encoders import families, weights
from qat_jax.encoders.pixels import Pixels, read_pixels
from qat_jax.encoders.settings import Text, Vision
from qat_jax.encoders.tower import TextTower, VisionTower
from train.encoder.vocabulary import write_tokenizer
from train.losses import contrastive
from train.step import make_optimiser

DEVICE = "device"  # the axis of those that share a batch


def train_encoder(
  config: ConfigDict, workdir: pathlib.Path, devices: Sequence[jax.Device] | None = None
) -> pathlib.Path:
  """Trains a CLIP from scratch, on all devices or those given, and returns the folder it is in.

  Raises ValueError for pictures of another size than the toybox draws, where the data holds fewer images than a batch,
  and where devices cannot share one.
  """
  image, crop = config.model.vision.image, config.model.vision.crop
  if image != SIZE or crop > SIZE:
    raise ValueError(
      f"model.vision.image is {image} and crop {crop}; the toybox draws pictures of {SIZE} pixels, which are taken as "
      f"they are: image must be {SIZE}, crop at most that"
    )
  source = toybox.source(config.data.split, config.data.name)
  if len(source) < config.train.batch_size:
    raise ValueError(f"train.batch_size is {config.train.batch_size}, but there are only {len(source)} images")
  mesh = Mesh(np.array(jax.devices() if devices is None else devices), (DEVICE,))
  if config.train.batch_size % mesh.size:
    raise ValueError(f"train.batch_size is {config.train.batch_size}, no multiple of {mesh.size} devices")
  out = pathlib.Path(config.out or workdir / "clip")
  out.mkdir(parents=True, exist_ok=True)
  tokenizer = write_tokenizer(out, toybox_captions.vocabulary(), config.model.text.tokens)
  processor = write_processor(out, config.model.vision)
  clip = make_config(config.model, len(tokenizer), tokenizer.eos_token_id)
  vision, text = families.towers(clip)
  assert text is not None  # a CLIP has both
  params = fit_towers(
    vision, text, processor, Batches(source, processor, tokenizer, config.train.longest, config.seed), config, mesh
  )
  clip.save_pretrained(out)
  weights.save_weights(out, params, vision, clip.model_type)
  return out


class Batches:
  """Training batches: toys in one of their views, cut out a little differently and described anew each time."""

  def __init__(self, source: toybox.Source, processor: Pixels, tokenizer: Any, longest: int, seed: int) -> None:
    """Decodes all images of a source; captions are cut to `longest` tokens."""
    toys = {toy.name: toy for family in families_of_toys() for toy in family}
    records = [source[i] for i in range(len(source))]
    self.toys = [toys[record["instance"]] for record in records]
    self.views = [int(record["id"].rpartition("_")[2]) for record in records]
    self.pixels_NPP3 = np.stack([np.asarray(decode(record)) for record in records])
    self.crop, self.tokenizer, self.longest, self.seed = processor.crop[0], tokenizer, longest, seed

  def __len__(self) -> int:
    return len(self.toys)

  def batch(self, number: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the pixels (BPP3, uint8), token ids (BL) and captions (B, equal numbers for equal ones) of a step."""
    rng = np.random.Generator(np.random.Philox(key=[self.seed, number]))
    rows = rng.choice(len(self), size, replace=False)
    top, left = rng.integers(0, self.pixels_NPP3.shape[1] - self.crop + 1, 2)
    pixels_BPP3 = self.pixels_NPP3[rows, top : top + self.crop, left : left + self.crop]
    captions = [toybox_captions.coarse(self.toys[row], int(rng.integers(2**31)), self.views[row]) for row in rows]
    ids_BL = self.tokenizer(
      captions, padding="max_length", truncation=True, max_length=self.longest, return_tensors="np"
    )["input_ids"]
    return pixels_BPP3, ids_BL.astype(np.int32), np.unique(captions, return_inverse=True)[1].astype(np.int32)


def fit_towers(vision: Vision, text: Text, processor: Pixels, batches: Batches, config: ConfigDict, mesh: Mesh) -> dict:
  """Returns parameters trained with the symmetric contrastive loss, each device with its part of a batch.

  Equal captions are no negatives of each other.
  """
  settings = config.train
  optimiser = make_optimiser(settings.steps, settings.learning_rate, 1e-5, settings.warmup_steps, settings.weight_decay)
  images, texts = VisionTower(vision), TextTower(text)
  gathered = functools.partial(jax.lax.all_gather, axis_name=DEVICE, tiled=True)

  def loss(params: dict, pixels_BPP3: jax.Array, ids_BL: jax.Array, meaning_B: jax.Array) -> jax.Array:
    image_BD = normalise(jnp.asarray(images.apply({"params": params["vision"]}, processor.normalise(pixels_BPP3))))
    text_BD = normalise(jnp.asarray(texts.apply({"params": params["text"]}, ids_BL)))
    score = gathered(image_BD) @ gathered(text_BD).T
    return contrastive(score, gathered(meaning_B), jnp.exp(-params["logit_scale"]))

  def update(params: dict, state: optax.OptState, *batch: jax.Array) -> tuple[dict, optax.OptState, jax.Array]:
    value, gradient = jax.lax.pmean(jax.value_and_grad(loss)(params, *batch), DEVICE)
    change, state = optimiser.update(gradient, state, params)
    params = optax.apply_updates(params, change)
    return params | {"logit_scale": jnp.minimum(params["logit_scale"], jnp.log(100.0))}, state, value

  whole, part = PartitionSpec(), PartitionSpec(DEVICE)
  shared = jax.shard_map(update, mesh=mesh, in_specs=(whole, whole, part, part, part), out_specs=whole, check_vma=False)
  step = jax.jit(shared, donate_argnums=(0, 1))
  key_vision, key_text = jax.random.split(jax.random.key(config.seed))
  pixels_BPP3, ids_BL, _ = batches.batch(0, 1)
  params = {
    "vision": jax.jit(images.init)(key_vision, jnp.float32(pixels_BPP3))["params"],
    "text": jax.jit(texts.init)(key_text, ids_BL)["params"],
    "logit_scale": jnp.asarray(-np.log(settings.temperature), jnp.float32),
  }
  state = optimiser.init(params)
  bar = tqdm.trange(settings.steps, desc="encoder", unit="step", mininterval=5)
  for number in bar:
    params, state, value = step(params, state, *batches.batch(number, settings.batch_size))
    value.block_until_ready()  # devices that share a CPU meet in time only when there is one step at a time
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
    text_config=tower(model.text) | text, vision_config=tower(model.vision) | vision, projection_dim=model.projection
  )


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
  pixels = read_pixels(folder, "clip")
  assert isinstance(pixels, Pixels)
  return pixels
