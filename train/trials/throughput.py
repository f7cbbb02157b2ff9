"""How many pairs a second training takes, and what it holds: python -m train.trials.throughput --form paper.

One device, random features; the step is the one that `train.main` runs. A batch that does not fit is said so, and the
larger ones are not tried.
"""

import argparse
import time
from typing import Any

import jax
import numpy as np

from qat_jax.adaptation import unit
from qat_jax.models.forms import FORMS, initialise, parameters
from qat_jax.runs import ANEW, end_on_signals
from train.allocation import freed_is_kept, one_heap
from train.step import Batch, LossSettings, first_state, make_optimiser, make_step

AXIS = "device"


def batch_of(rng: np.random.Generator, size: int, width: int) -> Batch:
  """Returns a batch of random pairs, each of an instance of its own, with a leading device axis."""
  rows = lambda: unit(rng.standard_normal((size, width), np.float32))[None]
  none = np.zeros((1, size, 0), np.float32)
  return Batch(rows(), rows(), np.arange(size, dtype=np.int32)[None], np.zeros((1, size, 0, width), np.float32), none)


def throughput_of(form: str, settings: dict[str, Any], width: int, size: int, rounds: int) -> tuple[float, float, int]:
  """Returns pairs a second (the fastest of the rounds), the bytes that the step holds, and the form's parameters."""
  module = FORMS[form](width, **settings)
  variables = initialise(module, jax.random.key(0))
  optimiser = make_optimiser(1000, 1e-3, 1e-5, 100, 1e-2)
  step = make_step(module, variables["constants"], optimiser, LossSettings(), 0, AXIS)
  one_device = jax.pmap(step, axis_name=AXIS, in_axes=(None, 0), out_axes=None, devices=jax.devices()[:1])
  state = first_state(variables["params"], 0.07, optimiser)
  batch = jax.block_until_ready(jax.device_put(batch_of(np.random.default_rng(0), size, width)))
  done = one_device.lower(state, batch).compile()
  memory = done.memory_analysis()
  held = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes if memory else 0
  times = []
  for _ in range(rounds + 1):  # the first warms up
    began = time.perf_counter()
    state = jax.block_until_ready(done(state, batch))[0]
    times.append(time.perf_counter() - began)
  return size / min(times[1:]), held, parameters(variables)


def main() -> None:
  """Prints a row for each batch size."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
  parser.add_argument("--form", choices=FORMS, default="adaptive")
  parser.add_argument("--width", type=int, default=768)
  parser.add_argument("--batches", type=int, nargs="+", default=[256, 1024, 4096, 16384])
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument(
    "--lean", action="store_true", help="paper: products in bfloat16, and of each layer they alone kept"
  )
  flags = parser.parse_args()
  if flags.lean and flags.form != "paper":
    parser.error(f"--lean is for --form paper; got {flags.form}")
  settings: dict[str, Any] = {"dtype": "bfloat16", "remat": True} if flags.lean else {}
  device = jax.devices()[0]
  print(f"{flags.form}{', lean' * flags.lean}, D = {flags.width}, {device.device_kind}, JAX {jax.__version__}\n")
  print("| batch | pairs a second | ms a step | GiB held | parameters |\n|---|---|---|---|---|")
  for size in flags.batches:
    try:
      rate, held, count = throughput_of(flags.form, settings, flags.width, size, flags.rounds)
    except jax.errors.JaxRuntimeError as error:
      if "RESOURCE_EXHAUSTED" not in str(error):
        raise
      print(f"| {size:,} | does not fit | | | |")
      break
    print(f"| {size:,} | {rate:,.0f} | {size / rate * 1e3:,.1f} | {held / 2**30:,.2f} | {count:,} |", flush=True)


if __name__ == "__main__":
  one_heap()
  end_on_signals(ANEW)
  with freed_is_kept():
    main()
