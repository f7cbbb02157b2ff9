import importlib
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import qat_jax
from qat_jax import adapter as checkpoint
from qat_jax.features.store import write_features
from qat_jax.serve import batch as reranking


@pytest.fixture
def files(tmp_path):
  """An adapter that changes nothing, 40 items, 10 queries that are noisy copies of items."""
  rng = np.random.default_rng(0)
  gallery_ND = rng.standard_normal((40, 8)).astype(np.float32)
  gallery_ND /= np.linalg.norm(gallery_ND, axis=1, keepdims=True)
  write_features(tmp_path / "gallery", {"img": gallery_ND}, {"id": [f"item{i}" for i in range(40)]})
  query_QD = gallery_ND[:10] + 0.01 * rng.standard_normal((10, 8)).astype(np.float32)
  np.save(tmp_path / "queries.npy", query_QD)
  checkpoint.Adapter(8, {"text": checkpoint.Head("plain", {}, {})}).save(tmp_path / "adapter")
  inputs = {name: tmp_path / name for name in ("adapter", "gallery")}
  return {**inputs, "queries": tmp_path / "queries.npy", "out": tmp_path / "out.parquet"}


def test_every_query_finds_its_item_first_by_the_gallery_s_own_ids(files):
  table = pq.read_table(reranking.rerank_files(**files, k=3, block=4)).to_pydict()
  assert table["query_id"][::3] == [str(i) for i in range(10)]
  assert table["rank"] == [1, 2, 3] * 10
  assert table["item_id"][::3] == [f"item{i}" for i in range(10)]
  assert all(score > 0.99 for score in table["score"][::3])
  assert not files["out"].with_name("out.parquet.parts").exists()


def test_a_shortlist_is_reranked_and_nothing_else(files, tmp_path):
  shortlist = {"query_id": ["1", "0", "1"], "item_id": ["item1", "item7", "item5"]}
  pq.write_table(pa.table(shortlist), tmp_path / "shortlist.parquet")
  table = pq.read_table(reranking.rerank_files(**files, shortlist=tmp_path / "shortlist.parquet", k=5)).to_pydict()
  assert list(zip(table["query_id"], table["rank"], table["item_id"], strict=True)) == [
    ("0", 1, "item7"),
    ("1", 1, "item1"),
    ("1", 2, "item5"),
  ]


def test_a_killed_run_goes_on_where_it_was(files, monkeypatch):
  calls = []
  real = reranking.rank

  def dies_at_the_third(adaptation, *rest):
    calls.append(len(adaptation))
    if len(calls) == 3:
      raise KeyboardInterrupt
    return real(adaptation, *rest)

  monkeypatch.setattr(reranking, "rank", dies_at_the_third)
  with pytest.raises(KeyboardInterrupt):
    reranking.rerank_files(**files, k=3, block=3)
  assert not files["out"].exists()
  with pytest.raises(ValueError, match="blocks of another run .k differ"):
    reranking.rerank_files(**files, k=4, block=3)
  reranking.rerank_files(**files, k=3, block=3)
  assert calls == [3, 3, 3, 3, 1]
  resumed = pq.read_table(files["out"])
  assert resumed == pq.read_table(reranking.rerank_files(**files, k=3, block=3))


def test_inputs_that_do_not_fit_are_refused(files, tmp_path):
  np.save(tmp_path / "narrow.npy", np.ones((2, 4), np.float32))
  with pytest.raises(ValueError, match="4 wide; the adapter"):
    reranking.rerank_files(**{**files, "queries": tmp_path / "narrow.npy"})
  with pytest.raises(FileNotFoundError, match="no queries at"):
    reranking.rerank_files(**{**files, "queries": tmp_path / "nothing.npy"})
  pq.write_table(pa.table({"query_id": ["0"], "item_id": ["itme1"]}), tmp_path / "shortlist.parquet")
  with pytest.raises(ValueError, match="item_id 'itme1' is not among the 40"):
    reranking.rerank_files(**files, shortlist=tmp_path / "shortlist.parquet")
  pq.write_table(pa.table({"query": ["0"]}), tmp_path / "shortlist.parquet")
  with pytest.raises(ValueError, match="'item_id', 'query_id'. is missing"):
    reranking.rerank_files(**files, shortlist=tmp_path / "shortlist.parquet")


def test_the_program_runs_and_the_function_keeps_its_name(files):
  arguments = [f"--{name}={path}" for name, path in files.items()]
  command = [sys.executable, "-m", "qat_jax.rerank", "--k=2"]
  done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr
  assert pq.read_metadata(files["out"]).num_rows == 20
  failed = subprocess.run([*command, *arguments[1:], "--adapter=nowhere"], capture_output=True, text=True, check=False)
  assert failed.returncode == 1
  assert failed.stderr.splitlines()[-1].startswith("error: no adapter in")

  function = qat_jax.rerank
  with pytest.raises(ImportError, match="is a program"):
    importlib.import_module("qat_jax.rerank")
  from qat_jax import rerank

  assert rerank is function is qat_jax.search.rank.rerank
