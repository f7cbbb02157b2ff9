"""Two real processes with two devices each train as one with four; more of it is in tests/faults/hosts.py."""

import itertools
import pathlib

import chex
import jax
import numpy as np
import optax
import pytest

from qat_jax.models import forms
from qat_jax.runs import read_metrics
from qat_jax.types import SemiPositives
from tests.processes import Processes, free_port
from train import batches, loop
from train.hosts import exchange
from train.step import LossSettings, first_state, make_step

WIDTH, SIZE = 6, 24
LOSS = LossSettings(semi_share=0.3)


def material():
  """Returns a form, its variables, and step → batch, of this process: noise, dropout and semi-positives included."""
  rng = np.random.default_rng(0)
  features_ND = rng.normal(size=(96, WIDTH)).astype(np.float32)
  semi = SemiPositives(rng.integers(0, 96, (96, 2)).astype(np.int32), np.full((96, 2), 0.5, np.float32))
  pairs = batches.group(np.arange(96) // 2, "image")
  module = forms.FORMS["query_only"](WIDTH, hidden=16, dropout=0.2, maps_gallery=True)

  def batch_at(step):
    rows = batches.share(batches.draw_pairs(pairs, SIZE, 0, step), jax.process_index(), jax.process_count())
    return batches.read_batch(rows, features_ND, features_ND, semi, jax.local_device_count())

  return module, forms.initialise(module, jax.random.key(0)), batch_at


def learn(folder):
  """Takes one step of plain gradient descent, then trains for 50; the first process writes what came out."""
  module, variables, batch_at = material()
  descent = optax.sgd(1.0)
  step = make_step(module, variables["constants"], descent, LOSS, 0, loop.AXIS)
  before = first_state(variables["params"], 0.07, descent)
  after, _ = jax.pmap(step, axis_name=loop.AXIS, in_axes=(None, 0), out_axes=None)(before, batch_at(3))
  gradient = jax.tree.map(lambda a, b: np.asarray(a - b), before.params, after.params)
  settings = loop.LoopSettings(seed=0, steps=50, validate_every=25, warmup_steps=5)
  norm = lambda variables: float(sum(np.square(x).sum() for x in jax.tree.leaves(variables["params"])))
  trained = loop.train_head(module, variables, batch_at, norm, LOSS, settings, folder, "test")
  if exchange.first():
    for name, tree in (("gradient", gradient), ("params", trained.params)):
      np.savez(folder / f"{name}.npz", *jax.tree.leaves(tree))
  return trained


PROGRAM = """
import pathlib, sys
sys.path.insert(0, {here!r})
from train.hosts.joining import joined
with joined("127.0.0.1:" + sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), 120):
  import exchange_test
  exchange_test.learn(pathlib.Path(sys.argv[4]))
"""


def together(folder, processes, devices):
  """Has several processes `learn` in a folder."""
  code = PROGRAM.format(here=str(pathlib.Path(__file__).parent))
  port = str(free_port())
  commands = [["-c", code, port, str(processes), str(i), str(folder)] for i in range(processes)]
  started = Processes(folder, commands, [devices] * processes)
  assert started.wait() == [0] * processes, started.said()


def arrays(path):
  with np.load(path) as file:
    return [file[name] for name in file.files]


def check_same(one, other):
  chex.assert_trees_all_close(arrays(one / "gradient.npz"), arrays(other / "gradient.npz"), rtol=1e-6, atol=1e-6)
  chex.assert_trees_all_close(arrays(one / "params.npz"), arrays(other / "params.npz"), rtol=1e-5, atol=1e-5)
  losses = [[row["loss"] for row in read_metrics(f / "metrics.jsonl") if "loss" in row] for f in (one, other)]
  assert len(losses[0]) == 50
  np.testing.assert_allclose(*losses, rtol=1e-5)


def test_two_processes_train_as_one_with_all_their_devices_does(tmp_path):
  together(tmp_path / "two", processes=2, devices=2)
  learn(tmp_path / "one")
  assert np.abs(np.concatenate([x.ravel() for x in arrays(tmp_path / "one/gradient.npz")])).max() > 1e-3
  check_same(tmp_path / "one", tmp_path / "two")


def test_alone_nothing_is_exchanged(tmp_path):
  assert exchange.first()
  assert exchange.sent("a", lambda: (1, 2)) == (1, 2) and exchange.in_turn("b", lambda: 3) == 3
  assert exchange.from_all("c", "x") == ["x"]
  exchange.check_start({"config": object()}, tmp_path / "none")
  assert not (tmp_path / "none").exists()
  with exchange.locked(tmp_path / "run"), pytest.raises(BlockingIOError), exchange.locked(tmp_path / "run"):
    pass


class Store(dict):
  """Stands in for the coordinator's client."""

  def blocking_key_value_get(self, key, _):
    return self[key]

  def key_value_set(self, key, value):
    self[key] = value


def test_a_process_that_asks_another_question_is_told_and_gets_no_wrong_answer(monkeypatch):
  store = Store()
  monkeypatch.setattr(exchange, "client", lambda: store)
  monkeypatch.setattr(jax, "process_count", lambda: 2)

  def ask(process, *questions):
    monkeypatch.setattr(jax, "process_index", lambda: process)
    monkeypatch.setattr(exchange, "_number", itertools.count())
    return [exchange.sent(what, lambda what=what: f"the answer to {what}") for what in questions]

  answers = ask(0, "a", "b", "c")
  assert ask(1, "a", "b", "c") == answers == ["the answer to a", "the answer to b", "the answer to c"]
  with pytest.raises(RuntimeError, match="process 1 on .* asks for 'c', but the answer is to 'b'"):
    ask(1, "a", "c")
