"""The published form at full size beside ours: python -m train.trials.published ROOT OUT --steps 500.

Text queries of a retrieval set. Each form is trained by the loop of `train.main`, at every learning rate with seed 0,
then with the other seeds at the rate that is best on validation. Our forms get about as many parameters as the
published one. OUT/runs.jsonl gets a line for each run, and a run that is there is not run again, so `--seconds` can cut
the whole into pieces. An OUT of other data or settings is refused.

This wants an accelerator: a step of 1,024 queries is about 40 TFLOP for the published form.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import shutil
import time
from typing import Any, NamedTuple

import jax

from qat_jax.features.retrieval_set import RetrievalSet
from qat_jax.fit.training import Training
from qat_jax.models.forms import hidden_of_size, size_of
from qat_jax.runs import end_on_signals, explained, read_metrics
from qat_jax.validation import Validator
from train.gradient import by_gradient
from train.loop import LoopSettings
from train.material import Material
from train.step import LossSettings
from train.trials.records import chosen, claim, read, table

WARMUP = 0.1  # share of the steps
LOOKS = 10  # validations of a run
VALIDATION_QUERIES = 1000
SMALL = (3e-4, 1e-3, 3e-3, 1e-2)  # learning rates of our forms
LARGE = (1e-3, 3e-4, 3e-3)  # learning rates of the published ones
FULL: dict[str, Any] = {}  # the settings that `paper` has by default
RELEASED: dict[str, Any] = {
  **{"hidden": 512, "rank": 64, "layers": 4, "steps": 4, "heads": 8},
  **{"frobenius_norm": True, "anchor_scale": 0.8, "query_residual": 0.5},
}
TINY = {"rank": 2, "layers": 1, "steps": 1, "heads": 2}  # --small


class Trial(NamedTuple):
  """A form to be tried, with its settings and learning rates."""

  form: str
  settings: dict[str, Any]
  rates: tuple[float, ...]


class Run(NamedTuple):
  """One training: a trial by name, a learning rate and a seed."""

  name: str
  rate: float
  seed: int


def trials(width: int, full: dict[str, Any], released: dict[str, Any]) -> dict[str, Trial]:
  """Returns the forms by name; ours are as large as the published one."""
  fast = {"dtype": "bfloat16", "remat": True}
  published, size = full | fast, size_of("paper", full, width)
  ours = {form: {"hidden": hidden_of_size(size, width, form)} for form in ("query_only", "gated")}
  return {
    "static": Trial("static", {}, SMALL),
    **{form: Trial(form, settings, SMALL) for form, settings in ours.items()},
    "paper": Trial("paper", published, LARGE),
    "paper, from a static map": Trial("paper", published | {"zero_start": True, "maps_gallery": True}, LARGE),
    "released": Trial("released", released | fast, LARGE),
  }


def order(tried: dict[str, Trial], seeds: int) -> list[tuple[str, int, int]]:
  """Returns (name, number of the rate, seed) of every run: all forms at their first rate, at the next, then seeds."""
  most = max(len(trial.rates) for trial in tried.values())
  rates = [(name, i, 0) for i in range(most) for name, trial in tried.items() if i < len(trial.rates)]
  return rates + [(name, 0, seed) for seed in range(1, seeds) for name in tried]


def fit(trial: Trial, run: Run, data: RetrievalSet, folder: pathlib.Path, steps: int, batch: int) -> dict[str, Any]:
  """Returns the best of a run on validation, its precisions on test, and how long it took.

  A run whose loss is not finite has the value −1 and no precisions.
  """
  validator = Validator.of(data.split("val"), "text", VALIDATION_QUERIES, seed=0)
  material = Material(Training.of(data, "text"), None, None, validator, validator, {})
  schedule = LoopSettings(
    seed=run.seed,
    steps=steps,
    validate_every=max(1, steps // LOOKS),
    learning_rate=run.rate,
    end_learning_rate=run.rate / 100,
    warmup_steps=round(WARMUP * steps),
  )
  try:
    head = by_gradient(material, trial.form, trial.settings, batch, LossSettings(), schedule, folder)
    value = validator(head)
    test = Validator.of(data.split("test"), "text", 0, seed=0).precisions(head).round(6).tolist()
  except FloatingPointError:
    value, test = -1.0, []
  rows = read_metrics(folder / "metrics.jsonl")
  losses, seconds = ([row[name] for row in rows if name in row] for name in ("loss", "seconds"))
  shutil.rmtree(folder / "checkpoints", ignore_errors=True)
  measures = {"seconds": seconds[-1] if seconds else 0.0, "first_loss": losses[0], "last_loss": losses[-1]}
  return {"val": value, **measures, "test": test}


def run_all(tried: dict[str, Trial], data: RetrievalSet, flags: argparse.Namespace, end: float) -> None:
  """Runs what OUT/runs.jsonl does not have yet; begins no run that would end after `end` (perf_counter)."""
  path = flags.out / "runs.jsonl"
  for name, number, seed in order(tried, flags.seeds):
    done = [run for run in read(path) if run["name"] == name]
    rate = tried[name].rates[number] if seed == 0 else chosen(done, name)
    if rate is None or any((run["rate"], run["seed"]) == (rate, seed) for run in done):
      continue
    if time.perf_counter() + (done[-1]["seconds"] if done else 0.0) > end:
      continue
    run = Run(name, rate, seed)
    folder = flags.out / f"{name.replace(', ', '_').replace(' ', '_')}-{rate:g}-{seed}"
    result = fit(tried[name], run, data, folder, flags.steps, flags.batch)
    row = run._asdict() | {"steps": flags.steps, "batch": flags.batch} | result
    with path.open("a") as file:
      file.write(json.dumps(row) + "\n")
    print(json.dumps({key: value for key, value in row.items() if key != "test"}), flush=True)


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
  end = time.perf_counter() + flags.seconds
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
    full, released = FULL, RELEASED
    if flags.small:
      full, released = FULL | TINY | {"token_hidden": 8}, RELEASED | TINY | {"hidden": 8}
    tried = {k: v for k, v in trials(data.width, full, released).items() if not flags.only or k in flags.only}
    claim(flags.out, {"data": data.fingerprint, "steps": flags.steps, "batch": flags.batch, "small": flags.small})
    run_all(tried, data, flags, end)
    print(f"\n{jax.devices()[0].device_kind}, JAX {jax.__version__}, {flags.steps} steps of {flags.batch}\n")
    sizes = {name: size_of(trial.form, trial.settings, data.width) for name, trial in tried.items()}
    print(table(read(flags.out / "runs.jsonl"), sizes))


if __name__ == "__main__":
  end_on_signals()
  main()
