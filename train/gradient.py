"""Candidates that are trained by gradient: a form, with the contrastive loss, on one query type's material."""

import math
import pathlib

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
from tqdm import tqdm

from qat_jax.fit.training import evenly
from qat_jax.models import forms
from qat_jax.models.head import Head
from train import batches, loop
from train.hosts import exchange
from train.material import Material
from train.step import Batch, LossSettings

FEWEST_STEPS = 200
STATISTICS_ROWS = 100_000  # training queries that the input's mean and scale are taken over


def by_gradient(
  material: Material,
  form: str,
  settings: dict,
  batch_size: int,
  loss: LossSettings,
  schedule: loop.LoopSettings,
  folder: pathlib.Path,
) -> Head:
  """Returns a form trained with the contrastive loss: the best on validation of its run."""
  training, validator = material.training, material.validator
  semi = material.semi if training.relevant is None else None  # those of an image may be in the query's list
  queries = training.queries
  assert queries is not None, "text queries without captions cannot be trained"
  module = forms.FORMS[form](training.width, **settings)
  variables = forms.initialise(module, jax.random.key(schedule.seed))
  if "standardise" in variables["constants"]:
    rows = evenly(len(queries), STATISTICS_ROWS)
    variables["constants"] = forms.with_statistics(variables["constants"], jnp.asarray(queries[rows]))
  pairs, part = batches.pairs_of(training), (jax.process_index(), jax.process_count())
  size = fit_to_devices(min(batch_size, len(pairs)), jax.device_count())

  def batch_at(step: int) -> Batch:
    rows = batches.draw_pairs(pairs, size, schedule.seed, step)
    own, listed_QN = batches.share(rows, *part), batches.no_negatives(pairs, rows, *part)
    return batches.read_batch(own, queries, training.images, semi, jax.local_device_count(), listed_QN)

  trained = loop.train_head(
    module,
    variables,
    batch_at,
    lambda variables: validator(Head(form, settings, variables)),
    loss,
    schedule,
    folder,
    f"{training.query_type}/{folder.name}",
  )
  note = ""
  if schedule.target is not None and trained.steps < schedule.steps and trained.value < schedule.target:
    note = f"stopped at step {trained.steps:,} of {schedule.steps:,}, with no prospect of winning"
    if exchange.first():
      reached = f"{100 * trained.value:.1f}, to beat {100 * schedule.target:.1f}"
      tqdm.write(f"{training.query_type}/{folder.name}: {note} ({reached})")
  return Head(form, settings, {"params": trained.params, "constants": variables["constants"]}, note)


def loop_settings(config: ConfigDict, form: str, query_type: str, rows: int) -> loop.LoopSettings:
  """Returns how a form trains on so many rows: the static map, which is quick, has a schedule of its own.

  Few rows are learned by heart in few steps: a schedule that looks at each more than `epochs` times is shortened, and
  validation and patience with it, patience to no less than half of it: a head may dip before it rises.
  """
  values = {name: value for name, value in config.train.items() if name != "batch_size"}
  epochs, steps, every = config.epochs[query_type], values["steps"], config.validation.every
  if form == "static":
    return loop.LoopSettings(seed=config.seed, validate_every=every, **(values | dict(config.static_train)))
  enough = max(FEWEST_STEPS, math.ceil(epochs * rows / config.train.batch_size))
  if epochs and enough < steps:
    share = enough / steps
    every = max(1, round(share * every))
    patience = values["patience"] and min(values["patience"], max(math.ceil(share * values["patience"]), enough // 2))
    values |= {"steps": enough, "patience": patience}
  return loop.LoopSettings(seed=config.seed, validate_every=every, **values)


def fit_to_devices(batch_size: int, devices: int) -> int:
  """Returns the largest multiple of `devices` that is no more than `batch_size`."""
  return max(devices, batch_size - batch_size % devices)
