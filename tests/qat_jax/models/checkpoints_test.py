import json
import os
import pathlib
import shlex
import shutil
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

import qat_jax
from qat_jax.adapter import Adapter, Head
from qat_jax.models import forms
from qat_jax.models.checkpoints import Checkpoints, _told_once


def test_a_checkpoint_comes_back_whole_and_another_shape_is_refused(tmp_path):
  checkpoints = Checkpoints(tmp_path / "checkpoints")
  state = {"a": jnp.arange(3.0), "b": {"c": jnp.ones((2, 2))}}
  start = jax.tree.map(jnp.zeros_like, state)
  chex.assert_trees_all_equal(checkpoints.restore(start), start)
  assert checkpoints.note() == {}
  checkpoints.save(5, state, {"val_map": {"5": 0.1}})
  assert checkpoints.latest().name == "5" and checkpoints.note() == {"val_map": {"5": 0.1}}
  chex.assert_trees_all_equal(checkpoints.restore(start), state)
  with pytest.raises(ValueError, match=r"\(2, 2\) for b/c, the model wants \(2, 3\)"):
    checkpoints.restore({"a": jnp.zeros(3), "b": {"c": jnp.zeros((2, 3))}})
  checkpoints.close()


def test_a_checkpoint_that_a_kill_left_unfinished_is_not_taken(tmp_path):
  checkpoints = Checkpoints(tmp_path / "checkpoints")
  checkpoints.save(1, {"a": jnp.ones(2)})
  checkpoints.close()
  shutil.copytree(tmp_path / "checkpoints" / "1", tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp")
  again = Checkpoints(tmp_path / "checkpoints")
  assert again.latest().name == "1"
  again.close()


def cut(path):
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def change(path):
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)


HURT = {
  "cut short": lambda folder: cut(next((folder / "state").rglob("d/*"))),
  "a bit changed": lambda folder: change(next((folder / "state").rglob("d/*"))),
  "no metadata": lambda folder: (folder / "state/_METADATA").unlink(),
  "no manifest": lambda folder: (folder / "state/manifest.ocdbt").unlink(),
  "no state": lambda folder: shutil.rmtree(folder / "state"),
  "no checksums": lambda folder: (folder / "checksums.json").unlink(),
  "checksums cut short": lambda folder: cut(folder / "checksums.json"),
  "empty": lambda folder: [shutil.rmtree(folder), folder.mkdir()],
}


@pytest.mark.parametrize("hurt", HURT.values(), ids=HURT)
def test_of_a_damaged_checkpoint_a_line_says_so_and_the_one_before_it_counts(hurt, tmp_path, capsys):
  checkpoints = Checkpoints(tmp_path / "checkpoints")
  for step in (1, 2):
    checkpoints.save(step, {"a": jnp.full(500, step, jnp.float32)})
  checkpoints.close()
  hurt(tmp_path / "checkpoints/2")
  again = Checkpoints(tmp_path / "checkpoints")
  chex.assert_trees_all_equal(again.restore({"a": jnp.zeros(500)}), {"a": jnp.ones(500)})
  assert "checkpoints/2 is left out and removed" in capsys.readouterr().out
  again.save(2, {"a": jnp.full(500, 7.0)})  # its number is free again
  again.close()
  again = Checkpoints(tmp_path / "checkpoints")
  chex.assert_trees_all_equal(again.restore({"a": jnp.zeros(500)}), {"a": jnp.full(500, 7.0)})
  again.close()


def test_no_room_for_a_checkpoint_is_said_in_one_line(tmp_path, monkeypatch):
  checkpoints = Checkpoints(tmp_path / "checkpoints")
  monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
  with pytest.raises(OSError, match=r"no room for the checkpoint .*/1 .*free some space and run again"):
    checkpoints.save(1, {"a": jnp.ones(5)})
  checkpoints.close()


def test_threads_of_a_failed_write_are_not_heard_afterwards_but_others_are(capsys, monkeypatch):
  monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
  with _told_once(pathlib.Path("c"), 1):
    pass
  assert sys.excepthook is sys.__excepthook__
  with pytest.raises(OSError, match="no room"), _told_once(pathlib.Path("c"), 1):
    raise ValueError("RESOURCE_EXHAUSTED")
  for error in (RuntimeError("Event loop is closed"), RuntimeError("another")):  # as C extensions report theirs
    sys.excepthook(type(error), error, None)
  assert capsys.readouterr().err == "RuntimeError: another\n"


def test_a_disk_that_gets_full_while_a_checkpoint_is_written_is_one_line(tmp_path):
  """A real small disk, in a name space of its own: it needs no root where the system allows that to users."""
  program = (
    "import jax.numpy as jnp, pathlib, sys; from qat_jax.models import checkpoints;"
    "checkpoints.shutil.disk_usage = lambda _: checkpoints.shutil._ntuple_diskusage(1 << 40, 0, 1 << 40);"
    "from qat_jax.runs import explained\n"
    "with explained(): checkpoints.Checkpoints(pathlib.Path('c')).save(1, {'a': jnp.arange(50_000.0)})"
  )
  alone = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
  mount = f"mount -t tmpfs -o size=60k tmpfs {shlex.quote(str(tmp_path))} && cd {shlex.quote(str(tmp_path))}"
  if not shutil.which("unshare") or subprocess.run([*alone, mount], capture_output=True).returncode:
    pytest.skip("this system lets no user mount a small disk")
  words = f"{mount} && {shlex.quote(sys.executable)} -c {shlex.quote(program)}"
  environment = os.environ | {"PYTHONPATH": str(pathlib.Path(__file__).parents[3])}
  done = subprocess.run([*alone, words], capture_output=True, text=True, env=environment)
  assert done.returncode == 1
  said = [line for line in done.stderr.splitlines() if line.strip()]
  assert len(said) == 1 and "no room for the checkpoint" in said[0], done.stderr


def test_a_run_goes_on_only_where_it_reads_the_same(tmp_path):
  def opened(made_with):
    checkpoints = Checkpoints(tmp_path / "checkpoints", made_with)
    latest = checkpoints.latest()
    return checkpoints, latest

  for made_with in ({"steps": 1}, {"steps": 2}):  # nothing is saved yet, so nothing can be mixed
    checkpoints, latest = opened(made_with)
    assert latest is None
    checkpoints.close()
  checkpoints, _ = opened({"steps": 2})
  checkpoints.save(1, {"a": jnp.ones(2)})
  checkpoints.close()
  checkpoints, latest = opened({"steps": 2})
  assert latest.name == "1"
  checkpoints.close()
  with pytest.raises(ValueError, match=r"checkpoints was made with other inputs or settings: steps was 2, is 3\."):
    opened({"steps": 3})
  (tmp_path / "checkpoints/made_with.json").unlink()  # an older version's
  with pytest.raises(ValueError, match="steps was not there, is 2"):
    opened({"steps": 2})


@pytest.fixture
def first_format(tmp_path):
  """An adapter as version 0.1 wrote it, and what it holds: parameters in a folder of orbax."""
  settings = {"hidden": 8, "rank": 2, "token_hidden": 8}
  head = Head("adaptive", settings, forms.initialise(forms.FORMS["adaptive"](8, **settings), jax.random.key(1)))
  heads = {"text": {"form": "adaptive", "settings": settings}, "image": {"form": "plain", "settings": {}}}
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save((tmp_path / "params").resolve(), {"text": head.variables})
  about = {"format": 1, "width": 8, "heads": heads, "info": {"name": "first"}}
  (tmp_path / "adapter.json").write_text(json.dumps(about))
  return tmp_path, Adapter(8, {"text": head, "image": Head("plain", {}, {"params": {}, "constants": {}})})


def test_an_adapter_of_the_first_format_is_read_and_saved_as_of_the_second(first_format):
  folder, adapter = first_format
  query_QD = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)
  for _ in range(2):
    found = qat_jax.load(folder)
    assert found.info == {"name": "first"}
    for query_type in ("text", "image"):
      chex.assert_trees_all_equal(found(query_QD, query_type), adapter(query_QD, query_type))
    found.save(folder)
  assert sorted(path.suffix for path in folder.iterdir()) == [".json", ".safetensors"]


def test_an_adapter_of_the_first_format_without_its_parameters_is_refused(first_format):
  folder, _ = first_format
  shutil.rmtree(folder / "params")
  with pytest.raises(ValueError, match="params is (missing|incomplete)"):
    qat_jax.load(folder)
