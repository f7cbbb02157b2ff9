import json
import os
import pathlib
import signal
import subprocess
import sys

import chex
import jax
import numpy as np
import pytest

from qat_jax.models import forms as hypernetwork
from qat_jax.models.head import Head
from qat_jax.runs import read_metrics
from qat_jax.types import Relevance
from qat_jax.validation import Validator
from train import batches, loop
from train.step import LossSettings

SETTINGS = loop.LoopSettings(seed=0, steps=12, validate_every=4, warmup_steps=2)
WIDTH = 6


def run(folder, settings=SETTINGS, validate=None, spoil_at=None, slow=None):
  """Trains a static map on random features; `spoil_at` makes the batch of that step NaN."""
  features = np.random.default_rng(0).normal(size=(32, WIDTH)).astype(np.float32)
  pairs = batches.group(np.arange(32) // 2, "image")
  module = hypernetwork.static(WIDTH)
  variables = hypernetwork.initialise(module, jax.random.key(0))

  def batch_at(step):
    if slow:
      slow(step)
    batch = batches.read_batch(
      batches.draw_pairs(pairs, 8, 0, step), features, features, None, jax.local_device_count()
    )
    return batch._replace(query=batch.query * np.nan) if step == spoil_at else batch

  norm = lambda variables: float(sum(np.square(x).sum() for x in jax.tree.leaves(variables["params"])))
  return loop.train_head(
    module, variables, batch_at, validate or norm, LossSettings(), settings, pathlib.Path(folder), "test"
  )


def test_a_run_cut_short_and_continued_ends_with_the_same_bits(tmp_path):
  whole = run(tmp_path / "whole")

  class Cut(Exception):
    pass

  def cut(step):
    if step == 9:
      raise Cut

  with pytest.raises(Cut):
    run(tmp_path / "cut", slow=cut)
  again = run(tmp_path / "cut")
  chex.assert_trees_all_equal(whole.params, again.params)
  assert (whole.value, whole.step) == (again.value, again.step)
  steps = [row["step"] for row in read_metrics(tmp_path / "cut" / "metrics.jsonl") if "loss" in row]
  assert steps == list(range(1, 13))


def test_the_best_on_validation_is_kept_not_the_last(tmp_path):
  values = iter([0.1, 0.5, 0.3, 0.2])
  trained = run(tmp_path, validate=lambda variables: next(values))
  assert (trained.value, trained.step) == (pytest.approx(0.5), 4)


def test_patience_ends_a_run_that_no_longer_gains(tmp_path):
  settings = SETTINGS._replace(steps=1000, patience=8)
  values = iter([0.5] + [0.4] * 300)
  assert run(tmp_path, settings, validate=lambda variables: next(values)).step == 0
  assert read_metrics(tmp_path / "metrics.jsonl")[-1]["step"] == 8


@pytest.mark.parametrize(
  ("values", "step", "target", "may"),
  [
    ({12: 0.2}, 12, 0.9, True),  # nothing to tell from yet
    ({4: 0.2, 8: 0.2}, 8, 0.9, True),  # too early
    ({4: 0.2, 8: 0.3, 12: 0.35, 16: 0.34}, 16, None, True),
    ({4: 0.2, 8: 0.3, 12: 0.35, 16: 0.34}, 16, 0.35, True),  # it has it
    ({4: 0.2, 8: 0.3, 12: 0.35, 16: 0.34}, 16, 0.44, True),  # the latter half's gain, 0.05, for one doubling and beyond
    ({4: 0.2, 8: 0.3, 12: 0.35, 16: 0.34}, 16, 0.47, False),
    ({4: 0.2, 8: 0.3, 12: 0.35}, 12, 0.71, True),  # 0.35 + (1 + 1.4) · 0.15
    ({4: 0.2, 8: 0.3, 12: 0.35}, 12, 0.73, False),
    ({4: 0.3, 8: 0.1, 12: 0.2}, 12, 0.32, False),
    ({4: 0.3, 8: 0.1, 12: 0.2}, 12, 0.305, True),  # too near to tell
  ],
)
def test_a_run_may_reach_what_its_latest_doublings_would_bring(values, step, target, may):
  assert loop.may_reach(target, values, step, steps=32) is may


def test_a_run_that_can_no_longer_win_is_stopped_also_when_it_goes_on_after_a_kill(tmp_path):
  class Cut(Exception):
    pass

  def cut(step):
    if step == 10:
      raise Cut

  settings = SETTINGS._replace(steps=32, target=0.63)
  gains = lambda: iter([0.1, 0.2, 0.25, 0.37, 0.36, *[2.0] * 5])  # at step 0, 4, 8, 12, 16, which is no longer enough
  whole, cut_short, continued = gains(), gains(), iter([0.37, 0.36, *[2.0] * 5])
  trained = run(tmp_path / "whole", settings, validate=lambda variables: next(whole))
  assert (trained.value, trained.steps) == (pytest.approx(0.37), 16)
  with pytest.raises(Cut):
    run(tmp_path / "cut", settings, validate=lambda variables: next(cut_short), slow=cut)
  assert run(tmp_path / "cut", settings, validate=lambda variables: next(continued)).steps == 16
  assert run(tmp_path / "cut", settings, validate=None).steps == 16  # and once more, after its end


def test_a_nan_loss_names_the_step_and_the_last_good_checkpoint(tmp_path):
  with pytest.raises(FloatingPointError, match=r"nan .* at step 7; .*checkpoints/4\."):
    run(tmp_path, spoil_at=6)
  rows = read_metrics(tmp_path / "metrics.jsonl")
  assert max(row["step"] for row in rows) == 4


KILLED = """
import sys, time
sys.path[:0] = [{here!r}, {root!r}]
import loop_test
loop_test.run(sys.argv[1], slow=lambda step: (print(step, flush=True), time.sleep(0.05)))
"""


def test_killed_at_three_moments_and_restarted_it_ends_with_the_same_bits(tmp_path):
  here = pathlib.Path(__file__).parent
  code = KILLED.format(here=str(here), root=str(here.parents[1]))
  moments = np.random.default_rng(0).integers(0, 12, 3)
  for moment in sorted(moments.tolist()):
    process = subprocess.Popen(
      [sys.executable, "-c", code, str(tmp_path / "killed")], stdout=subprocess.PIPE, text=True
    )
    for line in process.stdout:
      if int(line) >= moment:
        process.send_signal(signal.SIGKILL)
        break
    process.wait()
    process.stdout.close()
  chex.assert_trees_all_equal(run(tmp_path / "killed").params, run(tmp_path / "whole").params)


def learn(folder) -> list[float]:
  """Trains a map to undo a rotation of noisy queries; returns the validation mAP at every look."""
  rng = np.random.default_rng(0)
  image_ND = rng.normal(size=(256, 16)).astype(np.float32)
  rotation_DD = np.linalg.qr(rng.normal(size=(16, 16)))[0].astype(np.float32)
  query_ND = image_ND @ rotation_DD + 0.7 * rng.normal(size=image_ND.shape).astype(np.float32)
  pairs = batches.group(np.arange(192), "text")
  positives = [np.array([i]) for i in range(64)]
  validator = Validator(query_ND[192:], image_ND[192:], Relevance(positives, [np.array([], int)] * 64), 0, 0)
  module = hypernetwork.static(16)

  def batch_at(step):
    return batches.read_batch(
      batches.draw_pairs(pairs, 64, 0, step), query_ND, image_ND, None, jax.local_device_count()
    )

  settings = loop.LoopSettings(seed=0, steps=60, learning_rate=3e-3, validate_every=20, warmup_steps=5)
  variables = hypernetwork.initialise(module, jax.random.key(0))
  folder = pathlib.Path(folder)
  validate = lambda variables: validator(Head("static", {}, variables))
  loop.train_head(module, variables, batch_at, validate, LossSettings(), settings, folder, "test")
  return [row["val_map"] for row in read_metrics(folder / "metrics.jsonl") if "val_map" in row]


ON_ONE_DEVICE = """
import sys
sys.path[:0] = [{here!r}, {root!r}]
import jax, loop_test
assert jax.local_device_count() == 1
print(loop_test.learn(sys.argv[1]))
"""


def test_one_device_and_four_reach_the_same_validation_map(tmp_path):
  here = pathlib.Path(__file__).parent
  code = ON_ONE_DEVICE.format(here=str(here), root=str(here.parents[1]))
  environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
  command = [sys.executable, "-c", code, str(tmp_path / "one")]
  one = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
  four = learn(tmp_path / "four")
  assert 0.05 < four[0] < four[-1] - 0.05
  assert four[-1] < 0.9
  np.testing.assert_allclose(json.loads(one.splitlines()[-1]), four, atol=1e-3)
