"""The candidates of one query type: which heads are fitted, and with which settings, from the simplest on.

A candidate that is in the working folder is not fitted again. From its first step on it says what it is made from; one
that was made from anything else is refused. Of several processes (`train.hosts`) the first fits, measures and writes;
what is trained by gradient is trained by all.
"""

from __future__ import annotations

import pathlib
import shutil
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from qat_jax.adapter import Adapter
from qat_jax.fit import discriminant, experts, levels, memory
from qat_jax.fit.candidates import read_candidate, write_candidate
from qat_jax.fit.parts import with_part
from qat_jax.fit.training import PLAIN, Training
from qat_jax.models import forms
from qat_jax.models.head import Head
from qat_jax.sealed import read_record, write_record
from qat_jax.stages import check_same, fingerprint
from train import ensembles
from train.gradient import by_gradient, loop_settings
from train.hosts import exchange
from train.material import Material
from train.step import LossSettings

FORMAT = 5  # of candidates; higher where the same settings, which numbers are tried included, make another head
MADE_FROM = "made_from.json"
ADVICE = "Use another --workdir, or what it was made with"
ENOUGH_SECOND_VIEWS = 0.5  # of the training images, for a trained image head to be worth trying
STATIC = (
  "plda",
  "closed_form_both",
  "static_mapped",
  "off_words",
)  # one map of queries and gallery, the same for all queries
SHRINKAGE = [0.01, 0.03, 0.1, 0.3, 1.0]
RESIDUAL = [0.0, 0.25, 0.5, 0.75, 1.0, 1.5]


class Candidate(NamedTuple):
  """A head that was fitted, and what it reaches on the gate's validation queries (average precision, Q)."""

  adapter: Adapter
  precision_Q: np.ndarray

  @property
  def head(self) -> Head:
    """Its only head."""
    (head,) = self.adapter.heads.values()
    return head


def candidates(config: ConfigDict, material: Material, folder: pathlib.Path) -> dict[str, Candidate]:
  """Returns every candidate of the query type, by name, fitted or read from `folder`; the simplest first."""
  training, gate, semi = material.training, material.gate, material.semi
  fitted: dict[str, Candidate] = {}

  def add(
    name: str, settings: dict[str, Any], fit: Callable[[], Head | None], before: float = 0.0, together: bool = False
  ) -> str:
    made_from = fingerprint(format=FORMAT, settings=settings, **material.made_from)
    if not exchange.sent(f"is {name} there", lambda: claimed(folder / name, made_from)):
      began = time.perf_counter()
      head = fit() if together else None
      seconds = before + time.perf_counter() - began
      fitted_here = fit if head is None else lambda: head
      exchange.sent(name, lambda: measure(folder / name, material, settings, fitted_here, seconds))
    fitted[name] = Candidate(*read_candidate(folder / name))
    return name

  def beside(name: str, part: str, settings: dict[str, Any], fit: Callable[..., Head]) -> str:
    head, info = fitted[name].head, fitted[name].adapter.info
    settings = {"beside": info["settings"], part: settings}
    return add(with_part(name, part), settings, lambda: fit(training, gate, head), info["offline_seconds"])

  add("plain", {}, lambda: PLAIN)
  if material.off_words is not None:
    add("off_words", material.off_words.settings, material.off_words.fit)
  if training.query_type == "image" and training.second_views:
    grid: dict[str, Any] = {"shrinkage": SHRINKAGE, "residual": RESIDUAL}
    add("closed_form", grid, lambda: discriminant.query_alone(training, gate, SHRINKAGE, RESIDUAL))
    grid = {"shrinkage": SHRINKAGE}
    add("closed_form_both", grid, lambda: discriminant.both_sides(training, gate, SHRINKAGE))
    if not material.made_views:  # which have the directions of real ones, not their size, which its lengths rest on
      grid = {"shrinkage": list(discriminant.PLDA_SHRINKAGE)}
      add("plda", grid, lambda: discriminant.probabilistic(training, gate))
  if not material.made_views and experts.suffices(training):
    add("experts", experts.GRID, lambda: experts.experts(training, gate))
  if perfect := [name for name, one in fitted.items() if (one.precision_Q == 1).all()]:
    if exchange.first():
      tqdm.write(f"{training.query_type}: {perfect[0]} answers every validation query perfectly; nothing else is tried")
    return fitted
  if wants_training(config, training):
    loss = LossSettings(
      config.noise.kind, config.noise.scale, config.semi_positives.share if semi and training.relevant is None else 0.0
    )
    for name, (form, own) in trained_forms(config, training).items():
      schedule = loop_settings(config, form, training.query_type, training.pairs)
      size = config.train.batch_size
      if form != "static":  # which is quick, and what the others are compared with
        schedule = schedule._replace(target=to_beat(fitted, own["maps_gallery"]))
      settings = {"form": form, form: own, **loss._asdict(), **schedule._asdict(), "batch_size": size}
      fit = partial(by_gradient, material, form, own, size, loss)
      if config.ensemble > 1 and form != "static" and not own["maps_gallery"]:
        settings["members"] = config.ensemble
        fit = partial(ensembles.by_members, fit, config.ensemble)
      add(name, settings, partial(fit, schedule, folder / name), together=True)
      if name == "static_mapped" and "experts" in fitted and training.relevant is None and best_static(fitted) == name:
        mapped, info = fitted[name].head, fitted[name].adapter.info
        settings = {"beside": info["settings"], "experts": experts.GRID}
        add(f"{name}_experts", settings, partial(experts.experts, training, gate, mapped), info["offline_seconds"])
  for name in bases(fitted):
    with_parts = [name]
    pairs = config.memory[training.query_type]
    if pairs and memory.can_remember(training, fitted[name].head):
      with_parts.append(
        beside(name, "remembering", {"pairs": pairs} | memory.REMEMBERING, partial(memory.remembering, most=pairs))
      )
    pairs, captions, narrow = config.captions[training.query_type], material.captions, config.captions.width
    if pairs and captions is not None and memory.can_be_captioned(training, fitted[name].head, narrow):
      fit = partial(memory.captioned, texts=captions, most=pairs, narrow=narrow)
      settings = {"pairs": pairs} | ({"width": narrow} if narrow else {}) | memory.CAPTIONED
      with_parts.append(beside(with_parts[-1], "captioned", settings, fit))
    queries = config.levelled[training.query_type]
    if queries and training.queries is not None and len(np.unique(training.instance)) > 1:
      for one in with_parts:
        beside(one, "levelled", {"queries": queries} | levels.LEVELLED, partial(levels.levelled, queries=queries))
  return fitted


def best_static(fitted: dict[str, Candidate]) -> str:
  """Returns the best on validation of the heads whose map is the same for all queries."""
  return max((name for name in STATIC if name in fitted), key=lambda name: fitted[name].precision_Q.mean())


def bases(fitted: dict[str, Candidate]) -> list[str]:
  """Returns what parts are tried beside: the best on validation for an untouched gallery, and the best of all."""
  best = max(fitted, key=lambda name: fitted[name].precision_Q.mean())
  untouched = [name for name, one in fitted.items() if one.head.space == "frozen"]
  return list(dict.fromkeys([max(untouched, key=lambda name: fitted[name].precision_Q.mean()), best]))


def claimed(folder: pathlib.Path, made_from: dict[str, Any]) -> bool:
  """Says whether a candidate is in its folder; where none is, what it will be made from is written there first.

  Raises ValueError where the candidate, or what a killed run left of it, was made from anything else.
  """
  path = folder / MADE_FROM
  if path.exists():
    check_same(folder, read_record(path), made_from, ADVICE)
  elif (folder / "adapter.json").exists() or (folder / "checkpoints").exists():
    raise ValueError(f"{folder} does not say what it was made from: it is of an earlier version. {ADVICE}")
  else:
    folder.mkdir(parents=True, exist_ok=True)
    write_record(path, made_from)
  return (folder / "adapter.json").exists()


def measure(
  folder: pathlib.Path,
  material: Material,
  settings: dict[str, Any],
  fit: Callable[[], Head | None],
  before: float,
) -> None:
  """Fits a candidate and measures it on validation, into `folder`: an adapter with one head, and its precisions.

  `before` is how many seconds what came before took.
  """
  training, gate = material.training, material.gate
  began = time.perf_counter()
  head = fit()
  assert head is not None, f"{folder.name} cannot be fitted on this training set"
  seconds = before + time.perf_counter() - began
  precision_Q = gate.precisions(head)
  info = {
    "name": folder.name,
    "settings": settings,
    "note": head.note,
    "val_map": float(precision_Q.mean()),
    "train_val_map": material.validator(head),
    "offline_seconds": round(seconds, 2),
    "parameters": forms.parameters(head.variables),
  }
  write_candidate(folder, Adapter(training.width, {training.query_type: head}, info), precision_Q)
  for path in (folder / "checkpoints", *folder.glob(f"{folder.name}_*")):  # tens of MB that nobody will go on from
    shutil.rmtree(path, ignore_errors=True)


def to_beat(fitted: dict[str, Candidate], maps_gallery: bool) -> float:
  """Returns what a head has to reach on validation while it trains, to be of use: the best so far.

  Parts are tried beside the best head for an untouched gallery too, so such heads compete with each other alone.
  """
  return fitted[bases(fitted)[-1 if maps_gallery else 0]].adapter.info["train_val_map"]


def trained_forms(config: ConfigDict, training: Training) -> dict[str, tuple[str, dict]]:
  """Returns the forms to train by name, the cheap first: the baselines, the config's form, each with a gallery map."""
  settings = {name: dict(values) for name, values in config.forms.items()}
  form = config.form
  if form not in ("static", "query_only") and not settings["query_only"]["hidden"]:
    size = forms.size_of(form, settings[form], training.width)
    settings["query_only"]["hidden"] = forms.hidden_of_size(size, training.width)
  names = list(dict.fromkeys(["static", "query_only", form]))
  untouched = {name: (name, settings[name] | {"maps_gallery": False}) for name in names}
  mapped = {f"{name}_mapped": (name, settings[name] | {"maps_gallery": True}) for name in names}
  if config.gallery_map == "always" or (config.gallery_map == "auto" and training.query_type == "image"):
    found = untouched | mapped
  else:
    found = untouched | {"static_mapped": mapped["static_mapped"]}
  return dict(sorted(found.items(), key=lambda entry: entry[1][0] != "static"))  # of the others the order stays


def wants_training(config: ConfigDict, training: Training) -> bool:
  """Returns whether heads of this query type are trained by gradient."""
  choice = config.trained[training.query_type]
  if choice == "auto":
    enough = training.query_type == "text" or training.relevant is not None
    return enough or training.second_views >= ENOUGH_SECOND_VIEWS
  return choice == "always"
