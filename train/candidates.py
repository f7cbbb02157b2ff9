"""The heads that could serve a query type, each fitted, measured on validation and kept: what the gate chooses from.

A candidate that is on disk is not fitted again.
"""

from __future__ import annotations

import itertools
import pathlib
import shutil
import time
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from qat_jax.adapter import Adapter, Head, load
from qat_jax.features.retrieval_set import RetrievalSet
from qat_jax.fit import closed_form
from qat_jax.models import forms as hypernetwork
from qat_jax.models.memory import image_bank, text_bank
from qat_jax.types import SemiPositives
from qat_jax.validation import Validator
from train import batches, loop
from train.step import LossSettings

SHRINKAGE = (0.01, 0.03, 0.1, 0.3, 1.0)
RESIDUAL = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5)
TEMPERATURE, SCALE, WEIGHT = (0.01, 0.02, 0.035, 0.05, 0.1), (0.5, 1.0, 1.5), (0.25, 0.5, 1.0)
FEW = 400  # validation queries that choose a memory's temperature, scale and weight
STATISTICS_ROWS = 100_000  # training queries that the input's mean and scale are taken over


class Training(NamedTuple):
  """What the candidates of one query type are fitted on."""

  query_type: str
  queries: Any  # array or FeatureStore, ND: row i belongs to image i
  images: Any  # array or FeatureStore, ND
  instance: np.ndarray  # N
  semi: SemiPositives | None
  validator: Validator
  plain_precision: np.ndarray  # Q, average precision of the frozen feature for each validation query

  @property
  def width(self) -> int:
    """Returns how wide the features are."""
    return self.images[:1].shape[1]

  @classmethod
  def of(
    cls, data: RetrievalSet, query_type: str, semi: SemiPositives | None, validation_queries: int, seed: int
  ) -> Training:
    """Returns the training data of one query type, with its validation split read to the device."""
    split = data.split("val")
    queries, gallery = split.queries[query_type], split.gallery
    validator = Validator(queries[:], gallery[:], split.relevance(query_type), validation_queries, seed)
    own = data.train_texts if query_type == "text" else data.train_images
    frozen = validator.precisions(hypernetwork.Plain(data.train_images.width), {})
    return cls(query_type, own, data.train_images, data.train_images.column("instance"), semi, validator, frozen)


def plain(data: Training) -> Head:
  """Returns the frozen feature, as it is."""
  return Head("plain", {}, {"params": {}, "constants": {}})


def closed_form_query(data: Training) -> Head:
  """Returns the closed form on an untouched gallery; shrinkage and residual are the best on validation."""
  images_ND = np.asarray(data.images[:], np.float32)
  scatter_DD = closed_form.within_scatter(images_ND, data.instance)
  mean_D = closed_form.unit(images_ND).mean(axis=0)
  choices = (
    {"params": {}, "constants": closed_form.query_map(scatter_DD, mean_D, *pair)}
    for pair in itertools.product(SHRINKAGE, RESIDUAL)
  )
  return _best(data, "closed_form", {}, choices)


def closed_form_both(data: Training) -> Head:
  """Returns the closed form that maps queries and gallery alike (shrinkage discriminant analysis)."""
  images_ND = np.asarray(data.images[:], np.float32)
  scatter_DD = closed_form.within_scatter(images_ND, data.instance)
  mean_D = closed_form.unit(images_ND).mean(axis=0)
  start = hypernetwork.initialise(hypernetwork.static(data.width), jax.random.key(0))
  choices = (start | {"params": closed_form.whitening(scatter_DD, mean_D, shrinkage)} for shrinkage in SHRINKAGE)
  return _best(data, "static", {"maps_gallery": True}, choices)


def by_gradient(
  data: Training,
  form: str,
  settings: dict,
  batch_size: int,
  loss: LossSettings,
  loop_settings: loop.LoopSettings,
  folder: pathlib.Path,
) -> Head:
  """Returns a form trained with the contrastive loss: the best on validation of its run."""
  devices = jax.local_device_count()
  module = hypernetwork.FORMS[form](data.width, **settings)
  variables = hypernetwork.initialise(module, jax.random.key(loop_settings.seed))
  if "standardise" in variables["constants"]:
    rows = np.linspace(0, len(data.instance) - 1, min(len(data.instance), STATISTICS_ROWS)).astype(int)
    variables["constants"] = hypernetwork.with_statistics(variables["constants"], jnp.asarray(data.queries[rows]))
  pairs = batches.group(data.instance, data.query_type)
  size = fit_to_devices(min(batch_size, len(pairs)), devices)

  def batch_at(step: int):
    return batches.read(
      batches.draw(pairs, size, loop_settings.seed, step), data.queries, data.images, data.semi, devices
    )

  trained = loop.train(
    module,
    variables,
    batch_at,
    lambda variables: data.validator(module, variables),
    loss,
    loop_settings,
    folder,
    f"{data.query_type}/{folder.name}",
  )
  return Head(form, settings, {"params": trained.params, "constants": variables["constants"]})


def remembering(data: Training, base: Adapter, most: int) -> Head:
  """Returns the head of `base` with up to `most` training pairs that it remembers: a sample where there are more.

  Temperature, scale and weight are the best on validation. Image queries want instances of several images.
  """
  head = base.head(None)
  if data.query_type == "text":
    rows = np.linspace(0, len(data.instance) - 1, min(len(data.instance), most)).astype(int)
    bank = text_bank(data.queries[rows], data.images[rows])
  else:
    rows = with_second_views(data.instance, most)
    bank = image_bank(data.images[rows], data.instance[rows])
  settings = {"form": head.form, "settings": head.settings, "pairs": len(bank.query_MD)}
  kept_pairs = {"queries": bank.query_MD.astype(jnp.float16), "images": bank.image_MD.astype(jnp.float16)}

  def variables(temperature: float, scale: float, weight: float) -> dict:
    numbers = {"temperature": temperature, "scale": scale, "weight": weight}
    constants = {name: jnp.asarray(value, jnp.float32) for name, value in numbers.items()}
    inner = {name: {"head": tree} if tree else {} for name, tree in head.variables.items()}
    return {"params": inner["params"], "constants": inner["constants"] | kept_pairs | constants}

  few = data._replace(validator=data.validator.some(FEW))
  choices = (variables(*numbers) for numbers in itertools.product(TEMPERATURE, SCALE, WEIGHT))
  return _best(few, "remembering", settings, choices)


def with_second_views(instance_N: np.ndarray, most: int) -> np.ndarray:
  """Returns up to `most` rows whose instance has several, instance by instance, in random order."""
  _, code_N, count = np.unique(instance_N, return_inverse=True, return_counts=True)
  rows = np.flatnonzero(count[code_N] >= 2)
  place_N = np.random.default_rng(0).permutation(len(count))[code_N]
  return rows[np.argsort(place_N[rows], kind="stable")][:most]


def fit_to_devices(batch_size: int, devices: int) -> int:
  """Returns the largest multiple of `devices` that is no more than `batch_size`."""
  return max(devices, batch_size - batch_size % devices)


def kept(folder: pathlib.Path, name: str, data: Training, recipe: dict, fit, before: float = 0.0) -> Adapter:
  """Returns a candidate as an adapter with one head: from `folder` if it is there, else fitted, measured and saved.

  `recipe` is all that decides what training makes of the data; `before` is how many seconds what it builds on took.
  Raises ValueError where the candidate that is there has another width or another recipe.
  """
  if (folder / "adapter.json").exists():
    adapter = load(folder)
    made, wanted = {"width": adapter.width, **adapter.info.get("recipe", {})}, {"width": data.width, **recipe}
    for key in made.keys() | wanted.keys():
      if made.get(key) != wanted.get(key):
        raise ValueError(
          f"the candidate {folder} was made with {key} {made.get(key)}, the config wants {wanted.get(key)}. "
          "Use another --workdir, or the config it was made with"
        )
    return adapter
  began = time.perf_counter()
  head = fit()
  seconds = before + time.perf_counter() - began
  precision_Q = data.validator.precisions(head.module(data.width), head.variables)
  gain_Q = precision_Q - data.plain_precision
  info = {
    "name": name,
    "recipe": recipe,
    "val_map": float(precision_Q.mean()),
    "gain_over_plain": [float(gain_Q.mean()), float(gain_Q.std() / np.sqrt(len(gain_Q)))],
    "offline_seconds": round(seconds, 2),
    "parameters": hypernetwork.parameters(head.variables),
  }
  adapter = Adapter(data.width, {data.query_type: head}, info)
  adapter.save(folder)
  shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # tens of MB that nobody will go on from
  return adapter


def _best(data: Training, form: str, settings: dict, choices) -> Head:
  module: nn.Module = hypernetwork.FORMS[form](data.width, **settings)
  scored = [(data.validator(module, variables), variables) for variables in choices]
  return Head(form, settings, max(scored, key=lambda pair: pair[0])[1])
