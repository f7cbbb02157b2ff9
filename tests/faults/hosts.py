"""Training on many hosts, as processes of this machine: what it gives, and what breaks it (make test-hosts)."""

import pathlib
import shutil
import signal
import socket
import time

import chex
import numpy as np
import pytest

import qat_jax
from qat_jax.runs import read_metrics
from qat_jax.stages import lock
from tests.processes import ROOT, Processes, joining
from tests.train.hosts import exchange_test
from tests.train.pipeline_test import retrieval_set

# The program, which loses patience with who is gone sooner, and can be slowed down.
PROGRAM = """
import runpy, sys, time
from train import batches
from train.hosts import joining
joining.HEARTBEAT, slow = 10, float(sys.argv.pop(1))
draw = batches.draw_pairs
batches.draw_pairs = lambda *words: (time.sleep(slow), draw(*words))[1]
sys.argv[0] = "train.main"
runpy.run_module("train.main", run_name="__main__")
"""
FLAGS = [
  f"--config={ROOT / 'configs/features.py'}",
  "--config.form=query_only",
  "--config.forms.query_only.hidden=16",
  "--config.trained.image=never",
  "--config.gallery_map=never",
  "--config.semi_positives.keep=2",
  "--config.train.batch_size=24",
  "--config.train.steps=50",
  "--config.epochs.text=0",
  "--config.epochs.image=0",
  "--config.static_train.steps=20",
  "--config.validation.every=10",
  "--config.memory.text=50",
  "--config.captions.text=0",
  "--config.captions.image=0",
  "--config.levelled.text=0",
  "--config.levelled.image=0",
]
HEAD = "candidates/text/query_only"


def training(folder, workdir, processes=2, devices=2, root=None, slow=0.0, more=(), cwds=None, flags=None):
  """Starts a training of several processes; `more` are flags of the last one alone."""
  common = ["-c", PROGRAM, str(slow), *FLAGS, f"--config.data.root={root}", f"--workdir={workdir}"]
  commands = [[*common, *own] for own in flags or joining(processes)]
  commands[-1] += more
  devices = devices if isinstance(devices, list) else [devices] * len(commands)
  return Processes(folder, commands, devices, cwds)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  return retrieval_set(tmp_path_factory.mktemp("set"))


@pytest.fixture(scope="module")
def undisturbed(root, tmp_path_factory):
  """Returns the working folder of two processes that nobody disturbed."""
  folder = tmp_path_factory.mktemp("undisturbed")
  started = training(folder, folder / "run", root=root)
  assert started.wait() == [0, 0], started.said()
  said = started.said()
  assert f"adapter: {folder}/run/adapter\nnext: python -m eval.main --config=" in said[0]
  assert "--process" not in said[0] and said[1] == ""
  return folder / "run"


def params(workdir, name=HEAD):
  return qat_jax.load(workdir / name).head("text").variables["params"]


def check_whole(workdir, exactly=None, nearly=None):
  """Checks that a run is whole, and that its trained head is that of another one."""
  steps = [row["step"] for row in read_metrics(workdir / HEAD / "metrics.jsonl") if "loss" in row]
  assert steps == list(range(1, 51))
  assert not list(workdir.rglob("*.tmp")) and not (workdir / ".seen-by-all").exists()
  assert set(qat_jax.load(workdir).heads) == {"text", "image"}
  if exactly:
    chex.assert_trees_all_equal(params(workdir), params(exactly))
  if nearly:
    chex.assert_trees_all_close(params(workdir), params(nearly), rtol=1e-5, atol=1e-5)


def test_one_process_with_all_the_devices_trains_the_same(undisturbed, root, tmp_path):
  started = training(tmp_path, tmp_path / "run", devices=4, root=root, flags=[["--processes=1"]])
  assert started.wait() == [0], started.said()
  check_whole(tmp_path / "run", nearly=undisturbed)
  names = {path.parent.name for path in (undisturbed / "candidates/text").glob("*/adapter.json")}
  assert names == {path.parent.name for path in (tmp_path / "run/candidates/text").glob("*/adapter.json")}
  assert "query_only_remembering" in names
  for name in names:
    one, other = (qat_jax.load(run / "candidates/text" / name).info for run in (tmp_path / "run", undisturbed))
    assert one["val_map"] == pytest.approx(other["val_map"], abs=1e-3)


def test_three_processes_train_as_one_with_all_their_devices_does(tmp_path):
  exchange_test.together(tmp_path / "three", processes=3, devices=1)
  exchange_test.together(tmp_path / "one", processes=1, devices=3)
  exchange_test.check_same(tmp_path / "one", tmp_path / "three")


@pytest.mark.parametrize(
  ("number", "sign", "again"),
  [
    (0, signal.SIGKILL, {"processes": 2, "devices": 2}),
    (1, signal.SIGKILL, {"processes": 2, "devices": 2}),
    (0, signal.SIGTERM, {"flags": [["--processes=1"]], "devices": 2}),
    (1, signal.SIGTERM, {"processes": 3, "devices": 1}),
  ],
)
def test_who_loses_a_process_ends_and_goes_on_when_started_again(undisturbed, root, tmp_path, number, sign, again):
  workdir = tmp_path / "run"
  started = training(tmp_path / "first", workdir, root=root, slow=0.15)
  until = time.monotonic() + 240
  while not any(row["step"] >= 20 for row in read_metrics(workdir / HEAD / "metrics.jsonl")):
    assert time.monotonic() < until and started.all[0].poll() is None, started.said()
    time.sleep(0.02)
  started.all[number].send_signal(sign)
  ended = started.wait(60)
  assert 0 not in ended, started.said()
  assert not (workdir / "adapter").exists()
  if sign == signal.SIGTERM:
    assert ended[number] == 143 and ended[1 - number] == 1
    assert f"error: process {number} on " in started.said()[1 - number]
    assert " was stopped by SIGTERM; start all processes again: the same command goes on" in started.said()[1 - number]
    assert "Traceback" not in "".join(started.said())
  left = max(int(path.name) for path in (workdir / HEAD / "checkpoints").glob("*") if path.name.isdecimal())
  assert left >= 10
  second = training(tmp_path / "second", workdir, root=root, **again)
  assert set(second.wait()) == {0}, second.said()
  check_whole(workdir, **{"exactly" if again.get("processes") == 2 else "nearly": undisturbed})


def check_told(started, words, codes=(1, 1)):
  """Checks that every process ends, and says the words on its last line."""
  assert started.wait(90) == list(codes), started.said()
  for said in started.said():
    assert words in said.strip().splitlines()[-1], started.said()
    assert "Traceback" not in said


def test_other_flags_are_named(root, tmp_path):
  started = training(tmp_path, tmp_path / "run", root=root, more=["--config.train.steps=70"])
  check_told(started, "is not that of process 0: config.train.steps is 50 there, 70 here. Start all with the same")


def test_other_numbers_of_devices_are_named(root, tmp_path):
  started = training(tmp_path, tmp_path / "run", root=root, devices=[2, 1])
  check_told(started, "is not that of process 0: devices is 2 there, 1 here")


def test_a_batch_that_all_devices_cannot_share_is_named(root, tmp_path):
  more = [[*own, "--config.train.batch_size=30"] for own in joining(2)]
  started = training(tmp_path, tmp_path / "run", root=root, flags=more)
  check_told(started, "train.batch_size is 30, not a multiple of 4 devices; use 28 or 32")


def test_a_folder_that_only_one_host_has_is_named(root, tmp_path):
  cwds = [tmp_path / "node0", tmp_path / "node1"]
  for cwd in cwds:
    cwd.mkdir()
  started = training(tmp_path, "runs/mine", root=root, cwds=cwds)
  check_told(started, "does not see in runs/mine what process 0 on ")
  assert list((cwds[0] / "runs/mine").iterdir()) in ([], [cwds[0] / "runs/mine/.seen-by-all"])


def test_other_features_and_missing_ones_are_named(root, tmp_path):
  cwds = [tmp_path / "node0", tmp_path / "node1"]
  for cwd in cwds:
    shutil.copytree(root, cwd / "set")
  path = next((cwds[1] / "set/train/img_emb").glob("*.npy"))
  array = np.load(path)
  np.save(path, array[::-1])
  (cwds[1] / "set/train/meta.json").unlink()  # which would say that they were changed
  started = training(tmp_path / "a", tmp_path / "run", root="set", cwds=cwds)
  check_told(started, "is not that of process 0: train.images.features is '")
  shutil.rmtree(cwds[1] / "set")
  started = training(tmp_path / "b", tmp_path / "run", root="set", cwds=cwds)
  check_told(started, "no folder set; data.root wants one")


def test_a_folder_in_use_is_named_by_all(root, tmp_path):
  with lock(tmp_path / "run"):
    check_told(training(tmp_path / "a", tmp_path / "run", root=root), "run is in use by process ")


@pytest.mark.parametrize(
  ("number", "words"),
  [
    (1, "nobody answers at 127.0.0.1:{port}, where process 0 should be, for 4 s; start it there, or open the port"),
    (0, "not all of 2 processes have come in 4 s; start each with a number of its own, from 0 on"),
  ],
)
def test_who_does_not_come_is_named(root, tmp_path, number, words):
  own = joining(2)[number]
  started = training(tmp_path, tmp_path / "run", root=root, devices=1, flags=[[*own, "--wait=4"]])
  check_told(started, words.format(port=own[0].rpartition(":")[2]), [1])
  assert not pathlib.Path(tmp_path / "run").exists()


def test_a_port_in_use_is_named(root, tmp_path):
  with socket.socket(socket.AF_INET6) as taken:
    taken.bind(("::", 0))
    taken.listen()
    flags = [joining(2, taken.getsockname()[1])[0]]
    started = training(tmp_path, tmp_path / "run", root=root, devices=1, flags=flags)
    check_told(started, "cannot join the other processes at 127.0.0.1:", [1])
