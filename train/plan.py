"""The candidates of one query type: which heads are fitted, and with which settings, from the simplest on.

A candidate that is in the working folder is not fitted again. From its first step on it says what it is made from; one
that was made from anything else is refused. Of several processes (`train.hosts`) the first fits, measures and writes;
what is trained by gradient is trained by all.
"""

import pathlib
import shutil
import time
from collections.abc import Callable, Iterator
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
PARTS_ADD = 0.1  # mAP; parts beside a good head have not added more, so a head far behind the best is no base
TRAINED_ADDS = 0.06  # mAP; networks have not added more to the best static head where experts did as much
STATIC = ("plda", "closed_form_both", "static_mapped", "off_words")  # one map of queries and gallery for all queries
SHRINKAGE = [0.01, 0.03, 0.1, 0.3, 1.0]
RESIDUAL = [0.0, 0.25, 0.5, 0.75, 1.0, 1.5]


class Candidate(NamedTuple):
  """A head that may be tried: its name, all that it depends on, and how it is fitted."""

  name: str
  settings: dict[str, Any]
  fit: Callable[..., Head | None]  # takes the head that it stands beside, if any
  beside: str = ""  # the name of that head's candidate
  together: bool = False  # whether all processes fit it


class Fitted(NamedTuple):
  """A head that was fitted, and what it reaches on the gate's validation queries (average precision, Q)."""

  adapter: Adapter
  precision_Q: np.ndarray

  @property
  def head(self) -> Head:
    """Its only head."""
    (head,) = self.adapter.heads.values()
    return head


class Plan(NamedTuple):
  """What candidates are made of, and those that are fitted so far, by name."""

  config: ConfigDict
  material: Material
  folder: pathlib.Path
  fitted: dict[str, Fitted]


def candidates(config: ConfigDict, material: Material, folder: pathlib.Path) -> dict[str, Fitted]:
  """Returns every candidate of the query type, by name, fitted or read from `folder`; the simplest first.

  Each kind sees those before it. No further kind is tried where a candidate answers every query perfectly.
  """
  fitted: dict[str, Fitted] = {}
  for kind in (untrained, trained, parts_to_try):
    for one in kind(Plan(config, material, folder, fitted)):
      fitted[one.name] = fit_candidate(one, material, folder / one.name, fitted.get(one.beside))
    if kind is not parts_to_try and (perfect := [name for name in fitted if (fitted[name].precision_Q == 1).all()]):
      what = f"{material.training.query_type}: {perfect[0]} answers every validation query perfectly"
      if exchange.first():
        tqdm.write(f"{what}; nothing else is tried")
      break
  return fitted


def untrained(plan: Plan) -> Iterator[Candidate]:
  """Yields the plain score and the closed forms: static ones, then experts."""
  material = plan.material
  training, gate = material.training, material.gate
  yield Candidate("plain", {}, lambda: PLAIN)
  if material.off_words is not None:
    yield Candidate("off_words", *material.off_words)
  if training.query_type == "image" and training.second_views:
    grid: dict[str, Any] = {"shrinkage": SHRINKAGE, "residual": RESIDUAL}
    yield Candidate("closed_form", grid, lambda: discriminant.query_alone(training, gate, SHRINKAGE, RESIDUAL))
    grid = {"shrinkage": SHRINKAGE}
    yield Candidate("closed_form_both", grid, lambda: discriminant.both_sides(training, gate, SHRINKAGE))
    if not material.made_views:  # which have the directions of real ones, not their size, which its lengths rest on
      grid = {"shrinkage": list(discriminant.PLDA_SHRINKAGE)}
      yield Candidate("plda", grid, lambda: discriminant.probabilistic(training, gate))
  if not material.made_views and experts.suffices(training):
    grid = experts.GRID if training.relevant is None else experts.INTENTS
    yield Candidate("experts", grid, lambda: experts.fit_experts(training, gate))


def trained(plan: Plan) -> Iterator[Candidate]:
  """Yields the heads that are trained by gradient, and experts on the trained map where that is the best static one."""
  config, material, folder, fitted = plan
  training = material.training
  if not wants_training(config, training):
    return
  share = config.semi_positives.share if material.semi and training.relevant is None else 0.0
  loss, size = LossSettings(config.noise.kind, config.noise.scale, share), config.train.batch_size
  for name, (form, values) in trained_forms(config, training).items():
    if form != "static" and config.trained[training.query_type] == "auto" and (ahead := lead(fitted)) > TRAINED_ADDS:
      if exchange.first():
        what = f"experts lead the static heads by {100 * ahead:.1f}, more than networks have added"
        tqdm.write(f"{training.query_type}: {what}; none is trained but by config.trained.{training.query_type}=always")
      return
    schedule = loop_settings(config, form, training.query_type, training.pairs)
    if form != "static":  # which is quick, and what the others are compared with
      schedule = schedule._replace(target=to_beat(fitted, values["maps_gallery"]))
    settings = {"form": form, form: values, **loss._asdict(), **schedule._asdict(), "batch_size": size}
    train = partial(by_gradient, material, form, values, size, loss)
    if config.ensemble > 1 and form != "static" and not values["maps_gallery"]:
      settings["members"] = config.ensemble
      train = partial(ensembles.by_members, train, config.ensemble)
    yield Candidate(name, settings, partial(train, schedule, folder / name), together=True)
    if name == "static_mapped" and "experts" in fitted and training.relevant is None and best_static(fitted) == name:
      on_top = partial(experts.fit_experts, training, material.gate)
      yield Candidate(f"{name}_experts", {"experts": experts.GRID}, on_top, beside=name)


def parts_to_try(plan: Plan) -> Iterator[Candidate]:
  """Yields the parts beside the best heads, one on top of the other."""
  fitted, training, gate, captions = plan.fitted, plan.material.training, plan.material.gate, plan.material.captions
  pairs, called, queries = (plan.config[name][training.query_type] for name in ("memory", "captions", "levelled"))
  narrow = plan.config.captions.width

  def part(base: str, name: str, settings: dict[str, Any], add: Callable[..., Head]) -> Candidate:
    return Candidate(with_part(base, name), {name: settings}, lambda head: add(training, gate, head), beside=base)

  for base in bases(fitted):
    steps = [base]
    if pairs and memory.can_remember(training, fitted[base].head):
      yield part(base, "remembering", {"pairs": pairs} | memory.REMEMBERING, partial(memory.fit_memory, most=pairs))
      steps.append(with_part(base, "remembering"))
    if called and captions is not None and memory.can_be_captioned(training, fitted[base].head, narrow):
      settings = {"pairs": called} | ({"width": narrow} if narrow else {}) | memory.CAPTIONED
      fit = partial(memory.captioned, texts=captions, most=called, narrow=narrow)
      yield part(steps[-1], "captioned", settings, fit)
      steps.append(with_part(steps[-1], "captioned"))
    if queries and training.queries is not None and len(np.unique(training.instance)) > 1:
      settings = {"queries": queries} | levels.LEVELLED
      for step in steps:
        yield part(step, "levelled", settings, partial(levels.fit_levels, queries=queries))


def fit_candidate(one: Candidate, material: Material, folder: pathlib.Path, beside: Fitted | None) -> Fitted:
  """Returns a candidate, fitted and measured into its folder, or read from there."""
  settings, arguments, before = one.settings, [], 0.0
  if beside is not None:
    info = beside.adapter.info
    settings, arguments, before = {"beside": info["settings"]} | settings, [beside.head], info["offline_seconds"]
  made_from = fingerprint(format=FORMAT, settings=settings, **material.made_from)
  if not exchange.sent(f"is {one.name} there", lambda: claimed(folder, made_from)):
    began = time.perf_counter()
    head = one.fit(*arguments) if one.together else None
    seconds = before + time.perf_counter() - began
    fit_here = (lambda: head) if one.together else partial(one.fit, *arguments)
    exchange.sent(one.name, lambda: measure_candidate(folder, material, settings, fit_here, seconds))
  return Fitted(*read_candidate(folder))


def best_static(fitted: dict[str, Fitted]) -> str:
  """Returns the best on validation of the heads whose map is the same for all queries."""
  return max((name for name in STATIC if name in fitted), key=lambda name: fitted[name].precision_Q.mean())


def lead(fitted: dict[str, Fitted]) -> float:
  """Returns by how much experts are better on validation than every head whose map is the same for all queries."""
  reached = [one.precision_Q.mean() for name, one in fitted.items() if name.endswith("experts")]
  return max(reached) - fitted[best_static(fitted)].precision_Q.mean() if reached else 0.0


def bases(fitted: dict[str, Fitted]) -> list[str]:
  """Returns what parts are tried beside: the best on validation for an untouched gallery, and the best of all.

  The former only where what parts may add brings it up to the latter.
  """
  reached = {name: one.precision_Q.mean() for name, one in fitted.items()}
  best = max(fitted, key=lambda name: reached[name])
  untouched = max((name for name in fitted if fitted[name].head.space == "frozen"), key=lambda name: reached[name])
  return list(dict.fromkeys([untouched, best] if reached[untouched] + PARTS_ADD > reached[best] else [best]))


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


def measure_candidate(
  folder: pathlib.Path, material: Material, settings: dict[str, Any], fit: Callable[[], Head | None], before: float
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


def to_beat(fitted: dict[str, Fitted], maps_gallery: bool) -> float:
  """Returns what a head has to reach on validation while it trains, to be of use: the best so far.

  Parts are tried beside the best head for an untouched gallery too, so such heads compete with each other, as long as
  what parts may add brings them up to the best of all.
  """
  reached = {name: one.adapter.info["train_val_map"] for name, one in fitted.items()}
  *untouched, best = bases(fitted)
  if maps_gallery:
    return reached[best]
  return max([reached[best] - PARTS_ADD, *(reached[name] for name in untouched)])


def trained_forms(config: ConfigDict, training: Training) -> dict[str, tuple[str, dict]]:
  """Returns the forms to train by name, the cheap first: the baselines, the config's form, each with a gallery map."""
  settings = {name: dict(values) for name, values in config.forms.items()}
  form = config.form
  if form not in ("static", "query_only") and not settings["query_only"]["hidden"]:
    linear: dict[str, Any] = {"linear": True} if form == "gated" else {}
    size = forms.size_of_form(form, settings[form], training.width)
    settings["query_only"] |= {**linear, "hidden": forms.hidden_of_size(size, training.width, **linear)}
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
