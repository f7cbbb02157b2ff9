"""What is wrong with a cluster is said at once, and in words."""

import importlib.machinery
import os
import pathlib
import shutil
import socket
import sys

import pytest

import qat_jax
from qat_jax import cli
from qat_jax.cluster import nodes, work
from qat_jax.cluster.crew import make_all


def test_an_address_of_no_kind_is_refused():
  for address in ("", "here", "ray://host", "host:10001"):
    with pytest.raises(ValueError, match=r"wanted 'local', 'auto' or 'ray://HOST:PORT'"):
      work.reach(address)
  work.reach("local")


def test_without_ray_the_extra_is_named(monkeypatch, tmp_path):
  monkeypatch.setitem(sys.modules, "ray", None)
  arguments = [f"--{name}={tmp_path / name}" for name in ("adapter", "queries", "gallery", "out")]
  with pytest.raises(SystemExit, match=r"error: the cluster auto wants the package ray: pip install 'qat-jax\[ray\]'"):
    cli.main(["rank", *arguments, "--cluster=auto"])


@pytest.fixture
def silent():
  """Returns the port of a server that takes connections and never says a word."""
  with socket.create_server(("127.0.0.1", 0)) as server:
    yield server.getsockname()[1]


def test_a_cluster_that_is_not_there_is_named_in_seconds(ray, silent, monkeypatch):
  assert nodes.REACHABLE_SECONDS < 10
  monkeypatch.setattr(nodes, "REACHABLE_SECONDS", 0.5)
  monkeypatch.setattr(ray, "is_initialized", lambda: False)
  with socket.create_server(("127.0.0.1", 0)) as server:
    closed = server.getsockname()[1]
  for port in (silent, closed):
    with pytest.raises(ConnectionError, match=f"no cluster at ray://127.0.0.1:{port}: nothing of Ray answers"):
      work.reach(f"ray://127.0.0.1:{port}")
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    with pytest.raises(ConnectionError, match=f"no cluster at auto: nothing of Ray answers at 127.0.0.1:{port}"):
      work.reach("auto")


def test_one_process_is_in_one_cluster(cluster):
  with pytest.raises(ValueError, match="connected to another one"):
    work.reach("ray://127.0.0.1:10001")


def test_a_version_is_another_where_a_line_of_code_is(monkeypatch, tmp_path):
  own, here = nodes.versions(), pathlib.Path(qat_jax.__file__).parent
  assert own["qat-jax"].startswith(f"{qat_jax.__version__} (code ")
  copy = shutil.copytree(here, tmp_path / "qat_jax", ignore=lambda *_: ["__pycache__"])
  spec = importlib.machinery.ModuleSpec("qat_jax", None, is_package=True)
  spec.submodule_search_locations = [str(copy)]
  monkeypatch.setattr("importlib.util.find_spec", lambda name: spec)
  assert nodes.versions() == own
  with open(copy / "runs.py", "a") as file:
    file.write("# changed\n")
  assert {name for name, version in nodes.versions().items() if version != own[name]} == {"qat-jax"}


def test_a_node_with_another_version_is_named(cluster, monkeypatch):
  monkeypatch.setattr(nodes, "versions", lambda: {"qat-jax": f"0.{os.getpid()}", "jax": "1"})
  with pytest.raises(ImportError, match=rf"has qat-jax 0\.\d+, this process 0\.{os.getpid()}: install the same on all"):
    list(work.run(abs, [1], "auto"))


def test_an_accelerator_that_jax_would_leave_idle_is_named(cluster):
  slot = nodes.all_slots(nodes.connect("auto"))[0]._replace(accelerator="gpu")
  with pytest.raises(ValueError, match=r"has a GPU, but JAX computes on its processor \(JAX_PLATFORMS is 'cpu'\)"):
    list(make_all(abs, [1], "auto", [slot]))
