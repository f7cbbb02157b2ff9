"""Finds errors in a recipe before any long work: choices, sizes, batch and devices.

Unknown keys are found elsewhere: a recipe is locked.
"""

from typing import Any

from ml_collections import ConfigDict

from qat_jax.datasets.splits import KINDS
from qat_jax.models import forms as hypernetwork
from train import material

CHOICES = {
  "form": ("static", "query_only", "adaptive", "gated", "paper"),
  "gallery_map": ("always", "never", "auto"),
  "trained.text": ("always", "never"),
  "trained.image": ("always", "never", "auto"),
  "noise.kind": ("none", "relative", "published"),
}
POSITIVE = ("train.batch_size", "train.steps", "train.temperature", "static_train.steps", "validation.every")


def config(config: ConfigDict, devices: int) -> None:
  """Raises ValueError if the config has an unknown choice, or a batch that the devices cannot share."""
  for name, choices in CHOICES.items():
    if _get(config, name) not in choices:
      raise ValueError(f"config.{name} is {_get(config, name)!r}; use one of {', '.join(choices)}")
  for name in POSITIVE:
    if not _get(config, name) > 0:
      raise ValueError(f"config.{name} is {_get(config, name)}; wanted a number above 0")
  for name, epochs in config.epochs.items():
    if epochs < 0:
      raise ValueError(f"config.epochs.{name} is {epochs}; give 0 for no limit, or a number above 0")
  for part in ("memory", "captions", "levelled"):
    for name, rows in config[part].items():
      if rows < 0 or rows == 1:
        wanted = "" if name == "width" else " training pairs"
        raise ValueError(f"config.{part}.{name} is {rows}; give 0 for none, or at least 2{wanted}")
  for form, settings in config.forms.items():
    try:
      hypernetwork.FORMS[form](2, **dict(settings))
    except TypeError as error:
      raise ValueError(f"config.forms.{form}: {error}; see qat_jax.models.forms.{form}") from None
  material.ignored(config)
  batch_size = config.train.batch_size
  if batch_size % devices:
    below = batch_size - batch_size % devices
    fits = f"{below} or {below + devices}" if below else f"{devices}"
    raise ValueError(f"train.batch_size is {batch_size}, not a multiple of {devices} devices; use {fits}")
  if config.data.source and config.data.source not in KINDS:
    raise ValueError(f"data.source is {config.data.source!r}; use one of {', '.join(KINDS)}")
  if config.data.views < 0 or (config.data.views and config.data.root):
    wanted = "wanted 0, or made views of pictures that are encoded (data.source), not of features (data.root)"
    raise ValueError(f"config.data.views is {config.data.views}; {wanted}")
  if not config.data.root and not config.data.source:
    raise ValueError("config.data has neither root nor source; give --config.data.root=ROOT, a retrieval set")


def captions_width(config: ConfigDict, width: int) -> None:
  """Raises ValueError if items with captions are to be projected to more columns than they have, 2 · width."""
  if config.captions.width > 2 * width:
    raise ValueError(
      f"config.captions.width is {config.captions.width}, more than items with captions have, {2 * width}; give 0 to "
      "leave them so, or less"
    )


def _get(config: ConfigDict, name: str) -> Any:
  for part in name.split("."):
    config = config[part]
  return config
