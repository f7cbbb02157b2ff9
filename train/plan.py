"""From a config to the candidates of one query type: which forms are trained, with which settings."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable

import jax
import numpy as np
from ml_collections import ConfigDict

from qat_jax.adapter import Adapter, Head
from qat_jax.models import forms as hypernetwork
from train import candidates as fit
from train.loop import LoopSettings
from train.step import LossSettings

ENOUGH_SECOND_VIEWS = 0.5  # of the training images, for a trained image head to be worth trying


def candidates(config: ConfigDict, data: fit.Training, folder: pathlib.Path) -> dict[str, Adapter]:
  """Returns every candidate of the query type, by name, fitted or read from `folder`."""
  plan: dict[str, Callable[[], Head]] = {"plain": functools.partial(fit.plain, data)}
  recipes: dict[str, dict] = {}
  if data.query_type == "image" and second_views(data.instance) > 0:
    plan["closed_form"] = functools.partial(fit.closed_form_query, data)
    plan["closed_form_both"] = functools.partial(fit.closed_form_both, data)
  if wants_training(config, data):
    for name, (form, settings) in trained_forms(config, data).items():
      loss = LossSettings(config.noise.kind, config.noise.scale, config.semi_positives.share if data.semi else 0.0)
      loop = loop_settings(config, form)
      batch_size = config.train.batch_size
      own = {f"form.{key}": value for key, value in settings.items()}
      recipes[name] = {**own, **loss._asdict(), **loop._asdict(), "batch_size": batch_size}
      plan[name] = functools.partial(fit.by_gradient, data, form, settings, batch_size, loss, loop, folder / name)
  fitted = {name: fit.kept(folder / name, name, data, recipes.get(name, {}), call) for name, call in plan.items()}
  pairs = config.memory[data.query_type]
  if pairs and (data.query_type == "text" or second_views(data.instance) > 0):
    base = best_untouched(fitted)
    name, call = f"{base.info['name']}_remembering", functools.partial(fit.remembering, data, base, pairs)
    recipe = {**base.info["recipe"], "memory": pairs}
    fitted[name] = fit.kept(folder / name, name, data, recipe, call, base.info["offline_seconds"])
  return fitted


def best_untouched(fitted: dict[str, Adapter]) -> Adapter:
  """Returns the best candidate on validation among those for a gallery that nothing was done to."""
  untouched = [adapter for adapter in fitted.values() if adapter.head(None).space == "frozen"]
  return max(untouched, key=lambda adapter: adapter.info["val_map"])


def trained_forms(config: ConfigDict, data: fit.Training) -> dict[str, tuple[str, dict]]:
  """Returns the forms to train by name: the baselines, the config's form, and each with a map of the gallery."""
  settings = {name: dict(values) for name, values in config.forms.items()}
  form = config.form
  size = hypernetwork.parameters(
    jax.eval_shape(
      lambda: hypernetwork.initialise(hypernetwork.FORMS[form](data.width, **settings[form]), jax.random.key(0))
    )
  )
  if form not in ("static", "query_only") and not settings["query_only"]["hidden"]:
    settings["query_only"]["hidden"] = hypernetwork.query_only_of_size(size, data.width).query_head.hidden
  names = list(dict.fromkeys(["static", "query_only", form]))
  untouched = {name: (name, settings[name] | {"maps_gallery": False}) for name in names}
  mapped = {f"{name}_mapped": (name, settings[name] | {"maps_gallery": True}) for name in names}
  if config.gallery_map == "always" or (config.gallery_map == "auto" and data.query_type == "image"):
    return untouched | mapped
  return untouched | {"static_mapped": mapped["static_mapped"]}


def wants_training(config: ConfigDict, data: fit.Training) -> bool:
  """Returns whether heads of this query type are trained by gradient."""
  choice = config.trained[data.query_type]
  if choice == "auto":
    return data.query_type == "text" or second_views(data.instance) >= ENOUGH_SECOND_VIEWS
  return choice == "always"


def second_views(instance_N: np.ndarray) -> float:
  """Returns the share of training images whose instance has another image."""
  _, code_N, count = np.unique(instance_N, return_inverse=True, return_counts=True)
  return float(np.mean(count[code_N] >= 2))


def loop_settings(config: ConfigDict, form: str) -> LoopSettings:
  """Returns how a form trains: the static map has a schedule of its own."""
  own = dict(config.static_train) if form == "static" else {}
  values = {name: value for name, value in config.train.items() if name != "batch_size"}
  return LoopSettings(seed=config.seed, validate_every=config.validation.every, **(values | own))
