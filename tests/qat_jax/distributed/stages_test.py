"""Every stage gives on a cluster what it gives in one process, to the byte."""

import os

import numpy as np
import pytest
from PIL import Image

from qat_jax import cli
from qat_jax.cluster import work
from qat_jax.features.extraction import extract
from qat_jax.features.mining import mine
from qat_jax.features.store import write_features


def files(folder):
  return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_anything_is_made_once_and_by_all_nodes(cluster, tmp_path):
  folder = str(tmp_path)

  def make(shard):
    import pathlib
    import time

    time.sleep(0.05)
    (pathlib.Path(folder) / f"{shard}-{os.getpid()}").touch()
    return shard * shard, os.getpid()

  made = dict(work.run(make, range(3, 30), "auto"))
  assert {shard: square for shard, (square, _) in made.items()} == {shard: shard**2 for shard in range(3, 30)}
  assert len({process for _, process in made.values()}) == 3
  assert len(list(tmp_path.iterdir())) == 27
  assert not list(work.run(make, [], "auto"))


def test_a_lost_actor_costs_the_shard_in_its_hands_alone(cluster, tmp_path):
  folder = str(tmp_path)

  def make(shard):
    import pathlib
    import signal

    calls = pathlib.Path(folder) / f"{shard}"
    calls.write_text(calls.read_text() + "x" if calls.exists() else "x")
    if shard in (2, 5) and calls.read_text() == "x":
      os.kill(os.getpid(), signal.SIGKILL)
    return shard

  assert sorted(work.run(make, range(8), "auto")) == [(i, i) for i in range(8)]
  assert sorted(tmp_path.joinpath(str(i)).read_text() for i in range(8)) == ["x"] * 6 + ["xx"] * 2


def test_a_shard_that_ends_every_actor_is_named(cluster, monkeypatch):
  monkeypatch.setattr("qat_jax.cluster.crew.MOST_LOST", 2)

  def make(shard):
    if shard == 1:
      os._exit(9)
    return shard

  with pytest.raises(ChildProcessError, match="shard 1 ended 2 actors"):
    list(work.run(make, range(3), "auto"))


def test_what_a_shard_raises_is_raised_here_and_files_that_a_node_lacks_name_it(cluster, tmp_path):
  def missing(shard):
    raise FileNotFoundError(f"no shard {shard}")

  def wrong(shard):
    raise ValueError(f"shard {shard} is empty")

  with pytest.raises(ValueError, match=r"^shard 0 is empty$"):
    list(work.run(wrong, [0], "auto"))
  with pytest.raises(FileNotFoundError, match=r"no shard 4 \(on the node \w+"):
    list(work.run(missing, [4], "auto"))


def test_features_are_extracted_as_in_one_process(cluster, tmp_path):
  pictures = tmp_path / "pictures"
  pictures.mkdir()
  rng = np.random.default_rng(0)
  for i in range(8):
    Image.fromarray(rng.integers(0, 255, (24, 24, 3), np.uint8)).save(pictures / f"{i:02d}.png")
    (pictures / f"{i:02d}.txt").write_text(f"picture {i}")
  from qat_jax.datasets.folder import FolderSource
  from qat_jax.encoders import load_encoder

  encoder, found = load_encoder("toy_clip", 4), {}
  for name in ("local", "auto"):
    extract(FolderSource(pictures), encoder, tmp_path / name, batch_size=4, rows_per_shard=4, cluster=name)
    found[name] = files(tmp_path / name)
  assert len(found["auto"]) == 3 * 2 + 2  # two shards; content.bin and meta.json
  assert {name for name in found["auto"] if found["auto"][name] != found["local"].get(name)} == {
    next(name for name in found["auto"] if name.name == "meta.json")  # it says how fast this was
  }


@pytest.fixture(scope="module")
def gallery(tmp_path_factory):
  """A store of 1000 items that are not of unit length, 40 to a shard, with instances."""
  folder = tmp_path_factory.mktemp("features") / "gallery"
  features_ND = 3 * np.random.default_rng(1).standard_normal((1000, 8)).astype(np.float32)
  columns = {"id": [f"item{i}" for i in range(1000)], "instance": [f"{i % 300}" for i in range(1000)]}
  return write_features(folder, {"img": features_ND}, columns, rows_per_shard=40)


def test_galleries_are_prepared_as_in_one_process(cluster, adapter, gallery, tmp_path, monkeypatch):
  monkeypatch.setattr("qat_jax.features.prepared.ROWS_PER_SHARD", 600)
  for name in ("local", "auto"):
    adapter.prepare(gallery, "image", tmp_path / name, name)
  assert files(tmp_path / "local") == files(tmp_path / "auto")


def test_neighbours_are_mined_as_in_one_process(cluster, gallery):
  here, there = (mine(gallery, gallery.column("instance"), block=512, cluster=name) for name in ("local", "auto"))
  np.testing.assert_array_equal(here.ids, there.ids)
  np.testing.assert_array_equal(here.weights, there.weights)
  with pytest.raises(ValueError, match="on a cluster give a FeatureStore"):
    mine(gallery[:], gallery.column("instance"), cluster="auto")


def test_queries_are_ranked_as_in_one_process(cluster, adapter, gallery, tmp_path):
  adapter.save(tmp_path / "adapter")
  np.save(tmp_path / "queries.npy", np.random.default_rng(2).standard_normal((50, 8)).astype(np.float32))
  inputs = {name: str(tmp_path / name) for name in ("adapter", "queries.npy")}
  arguments = [f"--adapter={inputs['adapter']}", f"--queries={inputs['queries.npy']}", f"--gallery={gallery.folder}"]
  for name in ("local", "auto"):
    out = f"--out={tmp_path / name}.parquet"
    cli.main(["rank", *arguments, out, "--query-type=image", "--block=8", "--k=20", f"--cluster={name}"])
  assert (tmp_path / "auto.parquet").read_bytes() == (tmp_path / "local.parquet").read_bytes()
