"""The published form at full size, given its chance: python -m train.trials.published ROOT OUT --steps 500.

Text queries of a retrieval set. Each form is trained at every learning rate with seed 0, and with the other seeds at
the one that is best on validation; ours have about as many parameters as the published form. A line of OUT/runs.jsonl
for each run; runs that are there are not run again, so that --seconds may cut the whole into pieces; OUT of other data
or settings is refused. Wants an accelerator: a step of 1,024 queries is some 40 TFLOP for the published form.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from qat_jax.features.retrieval_set import RetrievalSet
from qat_jax.fit.training import Training
from qat_jax.models.forms import FORMS, hidden_of_size, initialise, size_of, with_statistics
from qat_jax.models.head import Head
from qat_jax.runs import end_on_signals, explained
from qat_jax.validation import Validator
from train import batches
from train.loop import AXIS, replicated
from train.step import Batch, LossSettings, TrainState, make_optimiser, make_step, start
from train.trials.records import chosen, claim, read, table

TEMPERATURE = 0.07
WARMUP = 0.1  # of the steps
CHUNK = 25  # steps in one call
LOOKS = 10  # validations of a run
SMALL = (3e-4, 1e-3, 3e-3, 1e-2)
LARGE = (1e-3, 3e-4, 3e-3)
FULL: dict[str, Any] = {}  # what `paper` has by default
RELEASED: dict[str, Any] = {"hidden": 512, "rank": 64, "layers": 4, "steps": 4, "heads": 8, "frobenius_norm": True} | {
  "anchor_scale": 0.8,
  "query_residual": 0.5,
}


class Trial(NamedTuple):
  """A form to be tried, with its settings and the learning rates."""

  form: str
  settings: dict[str, Any]
  rates: tuple[float, ...]


class Data(NamedTuple):
  """What is trained and validated on; features lie on the device."""

  fingerprint: dict[str, Any]
  pairs: batches.Pairs
  query_ND: jax.Array
  image_ND: jax.Array
  val: Validator
  test: Validator


def trials(width: int, full: dict[str, Any], released: dict[str, Any]) -> dict[str, Trial]:
  """Returns the forms by name; those of ours as large as the published one."""
  fast = {"dtype": "bfloat16", "remat": True}
  published = full | fast
  size = size_of("paper", full, width)

  def alike(form: str) -> dict[str, Any]:
    return {"hidden": hidden_of_size(size, width, form)}

  return {
    "static": Trial("static", {}, SMALL),
    "query_only": Trial("query_only", alike("query_only"), SMALL),
    "gated": Trial("gated", alike("gated"), SMALL),
    "paper": Trial("paper", published, LARGE),
    "paper, from a static map": Trial("paper", published | {"zero_start": True, "maps_gallery": True}, LARGE),
    "released": Trial("released", released | fast, LARGE),
  }


def load(root: str) -> Data:
  """Returns the text queries of a retrieval set."""
  data = RetrievalSet.open(root)
  training = Training.of(data, "text")
  if training.queries is None:
    raise ValueError(f"{root} has no captions in train/text_emb, which this trial trains on")
  of = lambda name, limit: Validator.of(data.split(name), "text", limit, seed=0)
  rows = [jnp.asarray(np.asarray(x[:], np.float32)) for x in (training.queries, training.images)]
  query_ND, image_ND = (x / jnp.linalg.norm(x, axis=1, keepdims=True) for x in rows)
  pairs = batches.group(training.instance, "text")
  return Data(data.fingerprint, pairs, query_ND, image_ND, of("val", 1000), of("test", 0))


def make_chunk(trial: Trial, constants: dict, steps: int, data: Data) -> Callable:
  """Returns (state, rows, learning rate, seed) → (state, losses): some steps at once, each that of `train.main`."""
  width = data.query_ND.shape[1]
  module = FORMS[trial.form](width, **trial.settings)

  def chunk(state: TrainState, rows_S3B: jax.Array, rate: jax.Array, seed: jax.Array) -> tuple[TrainState, jax.Array]:
    at_one = make_optimiser(steps, 1.0, 1e-2, round(WARMUP * steps), 1e-2)
    optimiser = optax.chain(at_one, optax.scale(rate))
    step = make_step(module, constants, optimiser, LossSettings(), seed, AXIS)

    def one(state: TrainState, rows_3B: jax.Array) -> tuple[TrainState, jax.Array]:
      query, image, instance = rows_3B
      none = jnp.zeros((len(query), 0, width)), jnp.zeros((len(query), 0))
      batch = Batch(data.query_ND[query], data.image_ND[image], instance, *none)
      state, measures = step(state, batch)
      return state, measures["loss"]

    return jax.lax.scan(one, state, rows_S3B)

  return jax.pmap(chunk, AXIS, in_axes=(None, 0, None, None), out_axes=None, donate_argnums=0)


def shared(rows_S3B: np.ndarray) -> np.ndarray:
  """Returns the rows of some steps, a part for each device."""
  devices = jax.local_device_count()
  return np.moveaxis(rows_S3B.reshape(*rows_S3B.shape[:2], devices, -1), 2, 0)


class Run:
  """Trains one form on one set, at any learning rate and seed, with one compiled program."""

  def __init__(self, trial: Trial, data: Data, steps: int, batch: int) -> None:
    self.trial, self.data, self.steps, self.batch = trial, data, steps, batch
    self.module = FORMS[trial.form](data.query_ND.shape[1], **trial.settings)
    constants = initialise(self.module, jax.random.key(0))["constants"]
    if "standardise" in constants:
      constants = with_statistics(constants, data.query_ND)
    self.constants = constants
    self.chunk = make_chunk(trial, constants, steps, data)

  def __call__(self, rate: float, seed: int) -> dict[str, Any]:
    """Returns the best on validation of a run, what it gives on test, and its seconds."""
    began, chunks = time.perf_counter(), self.steps // CHUNK
    optimiser = optax.chain(make_optimiser(self.steps, 1.0, 1e-2, 1, 1e-2), optax.scale(1.0))
    params = initialise(self.module, jax.random.key(seed))["params"]
    state = start(jax.tree.map(jnp.array, params), TEMPERATURE, optimiser)
    state = replicated(state.replace(best_params={}))
    best: dict[str, Any] = {"val": -1.0}
    losses, stepped = [], 0.0
    for number in range(chunks):
      drawn = [batches.draw(self.data.pairs, self.batch, seed, number * CHUNK + i) for i in range(CHUNK)]
      before = time.perf_counter()
      state, loss_S = self.chunk(state, shared(np.asarray(drawn, np.int32)), np.float32(rate), np.int32(seed))
      losses += np.asarray(loss_S).tolist()
      if number:  # the first compiles
        stepped += time.perf_counter() - before
      if (number + 1) % max(1, chunks // LOOKS) == 0 or number + 1 == chunks:
        head = self.head(state)
        value = self.data.val(head)
        if value > best["val"]:
          best = {"val": value, "step": (number + 1) * CHUNK, "head": head}
      if not np.isfinite(losses[-1]):
        break
    head = best.pop("head", None)
    test = [] if head is None else self.data.test.precisions(head).round(6).tolist()
    times = {"seconds": time.perf_counter() - began, "ms_a_step": 1e3 * stepped / max(1, (chunks - 1) * CHUNK)}
    return {**best, "first_loss": losses[0], "last_loss": losses[-1], **times, "test": test}

  def head(self, state: TrainState) -> Head:
    """Returns the head as it is."""
    params = jax.tree.map(jnp.array, state.params["form"])  # a copy: the next chunk overwrites the state
    return Head(self.trial.form, self.trial.settings, {"params": params, "constants": self.constants})


def run(tried: dict[str, Trial], data: Data, out: pathlib.Path, steps: int, batch: int, seeds: int, end: float) -> None:
  """Runs what is not in OUT/runs.jsonl yet, rates first, as long as there is time until `end` (perf_counter)."""
  path = out / "runs.jsonl"
  prepared: dict[str, Run] = {}
  for name, place, seed in plan(tried, seeds):
    done = read(path)
    rate = tried[name].rates[place] if seed == 0 else chosen(done, name)
    own = [run for run in done if run["name"] == name]
    if rate is None or any((run["rate"], run["seed"]) == (rate, seed) for run in own):
      continue
    if time.perf_counter() + (own[-1]["seconds"] if own else 0.0) > end:
      continue
    prepared[name] = prepared.get(name) or Run(tried[name], data, steps, batch)
    row = {"name": name, "rate": rate, "seed": seed, "steps": steps, "batch": batch} | prepared[name](rate, seed)
    with path.open("a") as file:
      file.write(json.dumps(row) + "\n")
    print(json.dumps({key: value for key, value in row.items() if key != "test"}), flush=True)


def plan(tried: dict[str, Trial], seeds: int) -> list[tuple[str, int, int]]:
  """Returns (name, which of its rates, seed) of every run: all forms at their first rate, at the next, then seeds."""
  most = max(len(trial.rates) for trial in tried.values())
  rates = [(name, i, 0) for i in range(most) for name, trial in tried.items() if i < len(trial.rates)]
  return rates + [(name, 0, seed) for seed in range(1, seeds) for name in tried]


def main() -> None:
  """Runs and prints the table."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
  parser.add_argument("root")
  parser.add_argument("out", type=pathlib.Path)
  parser.add_argument("--steps", type=int, default=500)
  parser.add_argument("--batch", type=int, default=1024)
  parser.add_argument("--seeds", type=int, default=3)
  parser.add_argument("--seconds", type=float, default=float("inf"), help="no run is begun that would end later")
  parser.add_argument("--only", nargs="+", help="names of forms")
  parser.add_argument("--small", action="store_true", help="networks of a few units, to try the program")
  flags = parser.parse_args()
  end = time.perf_counter() + flags.seconds
  if flags.steps < CHUNK or flags.batch % jax.local_device_count():
    devices = jax.local_device_count()
    parser.error(
      f"--steps is {flags.steps} and --batch {flags.batch}; wanted {CHUNK} steps or more, and a batch that {devices} "
      "devices can share"
    )
  with explained():
    data = load(flags.root)
    width = data.query_ND.shape[1]
    full, released = FULL, RELEASED
    if flags.small:
      small = {"rank": 2, "layers": 1, "steps": 1, "heads": 2}
      full, released = FULL | small | {"token_hidden": 8}, RELEASED | small | {"hidden": 8}
    tried = {k: v for k, v in trials(width, full, released).items() if not flags.only or k in flags.only}
    about = {"steps": flags.steps, "batch": flags.batch, "small": flags.small, "temperature": TEMPERATURE}
    claim(flags.out, {"data": data.fingerprint, **about})
    run(tried, data, flags.out, flags.steps, flags.batch, flags.seeds, end)
    device = jax.devices()[0]
    print(f"\n{device.device_kind}, JAX {jax.__version__}, {flags.steps} steps of {flags.batch}\n")
    sizes = {name: size_of(trial.form, trial.settings, width) for name, trial in tried.items()}
    print(table(read(flags.out / "runs.jsonl"), sizes))


if __name__ == "__main__":
  end_on_signals()
  main()
