"""The published form at full size beside ours: python -m train.trials.published ROOT OUT --steps 500.

Text queries of a retrieval set. Each form is trained by the loop of `train.main`, at every learning rate with seed 0,
then with the other seeds at the rate that is best on validation. Our forms get about as many parameters as the
published one. A run is a candidate in a folder of OUT: one that is there is not run again, so `--seconds` can cut the
whole into pieces, and one of other data or settings is refused.

This wants an accelerator: a step of 1,024 queries is about 40 TFLOP for the published form.
"""

import argparse
import pathlib
import time
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from qat_jax.features.retrieval_set import RetrievalSet
from qat_jax.fit.training import Training
from qat_jax.metrics import paired_interval
from qat_jax.models.forms import hidden_of_size, size_of_form
from qat_jax.runs import end_on_signals, explained
from qat_jax.stages import fingerprint
from qat_jax.validation import Validator
from train.gradient import by_gradient
from train.loop import LoopSettings
from train.material import Material
from train.plan import Candidate, Fitted, fit_candidate
from train.step import LossSettings

WARMUP = 0.1  # share of the steps
LOOKS = 10  # validations of a run
VALIDATION_QUERIES = 1000
SMALL = (3e-4, 1e-3, 3e-3, 1e-2)  # learning rates of our forms
LARGE = (1e-3, 3e-4, 3e-3)  # learning rates of the published ones
RELEASED: dict[str, Any] = {
  **{"hidden": 512, "rank": 64, "layers": 4, "steps": 4, "heads": 8},
  **{"frobenius_norm": True, "anchor_scale": 0.8, "query_residual": 0.5},
}
TINY = {"rank": 2, "layers": 1, "steps": 1, "heads": 2}  # --small


class FormTrial(NamedTuple):
  """A form to be tried, with its settings and learning rates."""

  form: str
  settings: dict[str, Any]
  rates: tuple[float, ...]


class Run(NamedTuple):
  """One training: a trial by name, a learning rate and a seed."""

  name: str
  rate: float
  seed: int


def trials(width: int, full: dict[str, Any], released: dict[str, Any]) -> dict[str, FormTrial]:
  """Returns the forms by name; ours are as large as the published one."""
  fast = {"dtype": "bfloat16", "remat": True}
  published, size = full | fast, size_of_form("paper", full, width)
  ours = {form: {"hidden": hidden_of_size(size, width, form)} for form in ("query_only", "gated")}
  return {
    "static": FormTrial("static", {}, SMALL),
    **{form: FormTrial(form, settings, SMALL) for form, settings in ours.items()},
    "paper": FormTrial("paper", published, LARGE),
    "paper, from a static map": FormTrial("paper", published | {"zero_start": True, "maps_gallery": True}, LARGE),
    "released": FormTrial("released", released | fast, LARGE),
  }


def order(tried: dict[str, FormTrial], seeds: int) -> list[tuple[str, int, int]]:
  """Returns (name, number of the rate, seed) of every run: all forms at their first rate, at the next, then seeds."""
  most = max(len(trial.rates) for trial in tried.values())
  rates = [(name, i, 0) for i in range(most) for name, trial in tried.items() if i < len(trial.rates)]
  return rates + [(name, 0, seed) for seed in range(1, seeds) for name in tried]


def candidate(
  trial: FormTrial, run: Run, material: Material, folder: pathlib.Path, steps: int, batch: int
) -> Candidate:
  """Returns a run as a candidate."""
  schedule = LoopSettings(
    seed=run.seed,
    steps=steps,
    validate_every=max(1, steps // LOOKS),
    learning_rate=run.rate,
    end_learning_rate=run.rate / 100,
    warmup_steps=round(WARMUP * steps),
  )
  train = partial(by_gradient, material, trial.form, trial.settings, batch, LossSettings(), schedule, folder)
  settings = {"form": trial.form, trial.form: trial.settings, "batch_size": batch, **schedule._asdict()}
  return Candidate(folder.name, settings, train, together=True)


def run_all(tried: dict[str, FormTrial], material: Material, flags: argparse.Namespace) -> dict[Run, Fitted | None]:
  """Returns all runs: those of OUT, and new ones, None where the loss was not finite.

  None begins that would end after `flags.end` (perf_counter).
  """
  done: dict[Run, Fitted | None] = {}
  for name, number, seed in order(tried, flags.seeds):
    rate = tried[name].rates[number] if seed == 0 else best_rate(done, name)
    if rate is None:
      continue
    run = Run(name, rate, seed)
    folder = flags.out / f"{name.replace(', ', '_').replace(' ', '_')}-{rate:g}-{seed}"
    before = [fitted.adapter.info["offline_seconds"] for one, fitted in done.items() if one.name == name and fitted]
    there = (folder / "adapter.json").exists()
    if not there and time.perf_counter() + (before[-1] if before else 0.0) > flags.end:
      continue
    try:
      one = candidate(tried[name], run, material, folder, flags.steps, flags.batch)
      done[run] = fit_candidate(one, material, folder, None)
    except FloatingPointError as error:
      done[run] = None
      print(f"{folder.name}: {error}", flush=True)
    if (fitted := done[run]) and not there:
      print(f"{folder.name}: {100 * fitted.adapter.info['val_map']:.1f} on validation", flush=True)
  return done


def best_rate(done: Mapping[Run, Fitted | None], name: str) -> float | None:
  """Returns the learning rate that is best on validation with seed 0; None where nothing was run."""
  reached = {run.rate: one.precision_Q.mean() for run, one in done.items() if one and (run.name, run.seed) == (name, 0)}
  return max(reached, key=lambda rate: reached[rate]) if reached else None


def trial_table(done: Mapping[Run, Fitted | None], sizes: Mapping[str, int], test: Validator) -> str:
  """Returns the Markdown table: each form at its best learning rate, the mean over its seeds, × 100.

  `sizes` is how many parameters each form has, by name.
  """
  columns = "form | parameters | rates tried, val | val | test | − static | − query only | seconds"
  lines = [f"| {columns} |", "|---" * 8 + "|"]
  of_form = {
    name: [one for run, one in done.items() if one and (run.name, run.rate) == (name, best_rate(done, name))]
    for name in sizes
  }
  precision = {name: [test.precisions(one.head) for one in runs] for name, runs in of_form.items() if runs}
  for name, precision_SQ in precision.items():
    scores = [100 * np.mean(precision_Q) for precision_Q in precision_SQ]
    spread = f" ± {np.std(scores, ddof=1):.1f} ({len(scores)})" if len(scores) > 1 else " (1)"
    first = sorted((run.rate, one.precision_Q.mean()) for run, one in done.items() if one and run[::2] == (name, 0))
    rates = ", ".join(f"{rate:.0e}: {100 * value:.1f}" for rate, value in first)
    infos = [one.adapter.info for one in of_form[name]]
    val, seconds = (np.mean([info[key] for info in infos]) for key in ("val_map", "offline_seconds"))
    cells = [name, f"{sizes[name] / 1e6:.2f}M", rates, f"{100 * val:.1f}", f"{np.mean(scores):.1f}{spread}"]
    for other in ("static", "query_only"):
      cells.append("–")
      if other in precision and other != name:
        difference = paired_interval(np.mean(precision_SQ, axis=0), np.mean(precision[other], axis=0))
        cells[-1] = "{:+.1f} [{:.1f}, {:.1f}]".format(*(100 * x for x in difference))
    lines.append("| " + " | ".join([*cells, f"{seconds:.1f}"]) + " |")
  return "\n".join(lines)


def main() -> None:
  """Runs and prints the table."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
  parser.add_argument("root", help="a retrieval set with captions")
  parser.add_argument("out", type=pathlib.Path, help="where the runs go; a folder found there is continued")
  parser.add_argument("--steps", type=int, default=500)
  parser.add_argument("--batch", type=int, default=1024)
  parser.add_argument("--seeds", type=int, default=3)
  parser.add_argument("--seconds", type=float, default=float("inf"), help="no run is begun that would end later")
  parser.add_argument("--only", nargs="+", help="names of forms")
  parser.add_argument("--small", action="store_true", help="networks of a few units, to try the program")
  flags = parser.parse_args()
  flags.end = time.perf_counter() + flags.seconds
  devices = jax.device_count()
  if flags.steps < LOOKS or flags.batch % devices:
    parser.error(
      f"--steps is {flags.steps} and --batch {flags.batch}; wanted {LOOKS} steps or more, and a batch that {devices} "
      "devices can share"
    )
  with explained():
    data = RetrievalSet.open(flags.root)
    if data.train_texts is None:
      raise ValueError(f"{flags.root} has no captions in train/text_emb, which this trial trains on")
    small: dict[str, Any] = TINY if flags.small else {}
    full, released = (small | {"token_hidden": 8}, small | {"hidden": 8}) if small else ({}, {})
    forms = trials(data.width, full, RELEASED | released)
    tried = {name: one for name, one in forms.items() if not flags.only or name in flags.only}
    validator = Validator.of(data.split("val"), "text", VALIDATION_QUERIES, seed=0)
    made_from = fingerprint(data=data.fingerprint)
    done = run_all(tried, Material(Training.of(data, "text"), None, None, validator, validator, made_from), flags)
    print(f"\n{jax.devices()[0].device_kind}, JAX {jax.__version__}, {flags.steps} steps of {flags.batch}\n")
    sizes = {name: size_of_form(trial.form, trial.settings, data.width) for name, trial in tried.items()}
    print(trial_table(done, sizes, Validator.of(data.split("test"), "text", 0, seed=0)))


if __name__ == "__main__":
  end_on_signals()
  main()
