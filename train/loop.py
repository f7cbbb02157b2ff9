"""The training loop and the one pmap: resumes, validates on a schedule, keeps the best, stops at a NaN.

A run that is killed at any moment and started again ends with the same parameters, bit for bit, as an uninterrupted
one: checkpoints hold the whole state, and batches and randomness depend only on (seed, step). With several processes
(`train.hosts`) the axis of the pmap, and with it the negatives, spans the devices of all.
"""

import contextlib
import functools
import json
import math
import os
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from qat_jax.models.checkpoints import Checkpoints
from qat_jax.runs import read_metrics
from train.allocation import freed_is_kept
from train.hosts import exchange
from train.step import Batch, LossSettings, TrainState, first_state, make_optimiser, make_step

AXIS = "device"
NEAR = 0.01  # mAP; a run this close to its target is not stopped, since validation is not more precise


class LoopSettings(NamedTuple):
  """How long and how a run trains."""

  seed: int
  steps: int
  learning_rate: float = 1e-3
  end_learning_rate: float = 1e-5
  warmup_steps: int = 200
  weight_decay: float = 1e-2
  clip: float = 1.0
  temperature: float = 0.07
  validate_every: int = 200
  patience: int = 0  # steps without a better validation after which a run stops; 0: never
  target: float | None = None  # another candidate's validation; a run that can no longer reach it stops


class Trained(NamedTuple):
  """The best of a run on validation."""

  params: dict
  value: float
  step: int
  seconds: float
  steps: int  # the number of steps that were run


@freed_is_kept()
def train_head(
  module: nn.Module,
  variables: dict,
  batch_at: Callable[[int], Batch],
  validate: Callable[[dict], float],
  loss: LossSettings,
  settings: LoopSettings,
  folder: pathlib.Path,
  name: str,
) -> Trained:
  """Trains a form and returns its best parameters on validation.

  Args:
    module: the form.
    variables: its variables at the start.
    batch_at: step → batch with a leading device axis.
    validate: variables → the number to maximise (mAP).
    loss: the settings of the loss.
    settings: the length and the schedule of the run.
    folder: the place of checkpoints, `metrics.jsonl` and TensorBoard events; a run found there is continued.
    name: the label of progress and metrics.

  Raises FloatingPointError where the loss is not finite, ValueError where a checkpoint has other shapes.
  """
  optimiser = make_optimiser(*settings[1:7])  # from the steps to the clip
  constants = variables["constants"]
  step_fn = make_step(module, constants, optimiser, loss, settings.seed, AXIS)
  parallel_step = jax.pmap(step_fn, axis_name=AXIS, in_axes=(None, 0), out_axes=None)
  desk = Desk(folder, name)
  state = replicated(desk.restore(first_state(variables["params"], settings.temperature, optimiser)))
  began, values = time.perf_counter() - desk.seconds, desk.values
  shown = {"desc": name, "unit": "step", "mininterval": 2, "leave": False, "disable": not exchange.first()}
  bar = tqdm.tqdm(total=settings.steps, initial=int(state.step), **shown)
  # CPU devices share threads: without a wait, devices of one step could block behind those of the next, for ever
  in_turn = jax.default_backend() == "cpu" and jax.local_device_count() > 1

  try:
    if int(state.step) == 0:
      state = keep_best(state, exchange.sent("validation at the start", lambda: validate(variables)))
    while not finished(settings, values, int(state.step), int(state.best_step)):
      step = int(state.step)
      until = min(settings.steps, step + settings.validate_every - step % settings.validate_every)
      pending: list[tuple[int, dict]] = []
      for number in range(step, until):
        state, measures = parallel_step(state, batch_at(number))
        if in_turn:
          jax.block_until_ready(measures)
        pending.append((number + 1, measures))
        bar.update()
      desk.note(pending)
      current = {"params": jax.device_get(state.params["form"]), "constants": constants}
      value = exchange.sent(f"validation at step {until}", functools.partial(validate, current))
      state, values[until] = keep_best(state, value), value
      bar.set_postfix(val_map=f"{value:.4f}", best=f"{float(state.best_value):.4f}")
      desk.keep(until, state, {"val_map": value, "seconds": time.perf_counter() - began})
  finally:
    desk.close()
    bar.close()
  best, seconds = jax.device_get(state.best_params["form"]), time.perf_counter() - began  # off the mesh: one serves it
  return Trained(best, float(state.best_value), int(state.best_step), seconds, int(state.step))


def finished(settings: LoopSettings, values: Mapping[int, float], step: int, best_step: int) -> bool:
  """Says whether a run ends at a step: it is the last, or nothing better came for long, or it cannot win any more."""
  stale = settings.patience and step - best_step >= settings.patience
  return step >= settings.steps or bool(stale) or not may_reach(settings.target, values, step, settings.steps)


def may_reach(target: float | None, values: Mapping[int, float], step: int, steps: int) -> bool:
  """Says whether a run may still reach a target.

  A run gains about the same, or less, each time its steps double. So it is granted the gain of the second half of its
  steps for each doubling that is left, and once more, and `NEAR` for noise. No run is stopped in its first third, where
  there are few validations.

  Args:
    target: the value to reach; None: any run may go on.
    values: the run's validations by step.
    step: the steps so far.
    steps: the steps in all.
  """
  before = [value for at, value in values.items() if 2 * at <= step]
  best = max(values.values(), default=math.inf)
  if target is None or step * 3 < steps or not before or best >= target:
    return True
  return best + (best - max(before)) * (1 + math.log2(steps / step)) + NEAR > target


def keep_best(state: TrainState, value: float) -> TrainState:
  """Returns the state; its parameters become the best ones if `value` is higher than all before."""
  if not value > float(state.best_value):
    return state
  value_and_step = replicated((jnp.asarray(value, jnp.float32), state.step))
  return state.replace(best_params=state.params, best_value=value_and_step[0], best_step=value_and_step[1])


def replicated(tree: Any) -> Any:
  """Returns a pytree on every device, placed as the pmap returns it, so that the step is compiled only once."""
  mesh = Mesh(np.array(jax.local_devices()), (AXIS,))
  return jax.device_put(jax.device_get(tree), NamedSharding(mesh, PartitionSpec()))


def check_finite(pending: list[tuple[int, dict]], checkpoints: Checkpoints) -> list[tuple[int, dict]]:
  """Returns the measures as numbers; raises at the first loss that is not finite."""
  rows = [(step, {name: float(x) for name, x in measures.items()}) for step, measures in pending]
  for step, measures in rows:
    if not np.isfinite(measures["loss"]) or not np.isfinite(measures["gradient_norm"]):
      raise FloatingPointError(
        f"the loss is {measures['loss']} and the gradient's norm {measures['gradient_norm']} at step {step}; "
        f"the last good checkpoint is {checkpoints.latest() or 'none: it never got to one'}. "
        "Lower train.learning_rate, or look for broken features with FeatureStore.verify()"
      )
  return rows


class Desk:
  """The files of a run: checkpoints, metrics and events. The first process writes them, and the others wait."""

  def __init__(self, folder: pathlib.Path, name: str) -> None:
    self.folder, self.name = folder, name
    self.values: dict[int, float] = {}  # validations by step of the run that is continued
    self.seconds = 0.0  # duration of the run that is continued

  def restore(self, start: TrainState) -> TrainState:
    """Returns the state (on the host) to continue from: the newest checkpoint, or `start`."""

    def opened() -> list:
      self.checkpoints = Checkpoints(self.folder / "checkpoints")
      self.state = self.checkpoints.restore(start)
      self.log = MetricsLog(self.folder, self.name, int(self.state.step))
      seconds = [row["seconds"] for row in read_metrics(self.log.path) if "seconds" in row]
      return [self.checkpoints.note().get("val_map", {}), seconds[-1] if seconds else 0.0]

    values, self.seconds = exchange.sent("the newest checkpoint", opened)
    self.values |= {int(step): value for step, value in values.items()}
    return exchange.from_first(self.state if exchange.first() else start)

  def note(self, pending: list[tuple[int, dict]]) -> None:
    """Writes the measures of steps; raises FloatingPointError if one is not finite."""
    if exchange.first():
      self.log.write(check_finite(pending, self.checkpoints))

  def keep(self, step: int, state: TrainState, measures: dict[str, float]) -> None:
    """Saves the state and the result of validation; no process goes on before both are on disk."""

    def save() -> None:
      self.log.write([(step, measures)])
      self.checkpoints.save(step, state, {"val_map": self.values})

    exchange.sent(f"the checkpoint of step {step}", save)

  def close(self) -> None:
    """Closes what is open."""
    for name in ("checkpoints", "log"):
      if hasattr(self, name):
        getattr(self, name).close()


class MetricsLog:
  """`metrics.jsonl` (a line for each step) and TensorBoard events; lines after the resumed step are dropped.

  Events are written in this thread: tensorboardX's own thread dies on a full disk, and its callers wait for ever.
  """

  def __init__(self, folder: pathlib.Path, name: str, resumed_step: int) -> None:
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    self.path, self.name = folder / "metrics.jsonl", name
    folder.mkdir(parents=True, exist_ok=True)
    rows = [json.dumps(row) + "\n" for row in read_metrics(self.path) if row["step"] <= resumed_step]
    temporary = self.path.with_suffix(".tmp")
    temporary.write_text("".join(rows))
    os.replace(temporary, self.path)
    self.file = self.path.open("a")
    (folder / "tensorboard").mkdir(exist_ok=True)
    self.board = EventsWriter(str(folder / "tensorboard" / "events"))
    started = SessionLog(status=SessionLog.START)  # hides an earlier run's events from this step on
    self.board.write_event(Event(wall_time=time.time(), step=resumed_step + 1, session_log=started))

  def write(self, rows: list[tuple[int, dict]]) -> None:
    """Appends measures, each a (step, {name: number})."""
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.summary import scalar

    for step, measures in rows:
      self.file.write(json.dumps({"step": step, "name": self.name, **measures}) + "\n")
      for key, value in measures.items():
        shown = scalar(f"{self.name}/{key}", value)
        self.board.write_event(Event(wall_time=time.time(), step=step, summary=shown))
    self.file.flush()
    self.board.flush()

  def close(self) -> None:
    """Closes both files; `write` has raised any error of the disk."""
    for file in (self.file, self.board):
      with contextlib.suppress(OSError):
        file.close()
