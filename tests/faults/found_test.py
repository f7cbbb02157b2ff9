"""What the campaigns found in inputs, each as a test of its own: one error that names the file."""

import json
import pickle

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eval.benchmarks import gldv2, hdf5, revisited
from qat_jax.adapter import load
from qat_jax.features import mining
from qat_jax.features.store import FeatureStore, write_features

OPEN_HEADER = b"{'descr': '<f4', 'fortran_order': False, 'shape': (5, ".ljust(117) + b"\n"  # the bracket is not closed


def broken_npy(path):
  path.write_bytes(b"\x93NUMPY\1\0" + len(OPEN_HEADER).to_bytes(2, "little") + OPEN_HEADER)


def short_row(path):
  path.write_text("id,images,Usage\na\n")
  gldv2.read_solution(path)


def truth_of_numbers(path):
  path.write_bytes(pickle.dumps([0.5]))
  revisited.read_gnd(path)


def truth_of_words(path):
  path.write_bytes(pickle.dumps([{"ok": ["a"], "junk": []}]))
  revisited.read_gnd(path)


def truth_too_large(path):
  path.write_bytes(b"\x80\x04\x8e" + (1 << 62).to_bytes(8, "little") + b".")
  revisited.read_gnd(path)


def numbered_ids(path):
  with h5py.File(path, "w") as file:
    file["features"], file["index"] = np.zeros((2, 3), np.float32), [1, 2]
  hdf5.Hdf5Features(path)


def endless_heap(path):
  with h5py.File(path, "w") as file:
    file["features"], file["index"] = np.zeros((2, 3), np.float32), ["a", "b"]
  data = path.read_bytes()
  free = data.index(b"GCOL") + 16 + 2 * 24  # behind two strings of up to eight bytes
  path.write_bytes(data[: free + 8] + bytes(8) + data[free + 16 :])
  hdf5.Hdf5Features(path)


def ranks(path):
  broken_npy(path)
  revisited.read_ranks(path)


def features(path):
  (path / "img_emb").mkdir(parents=True)
  broken_npy(path / "img_emb/img_emb_0.npy")
  FeatureStore.open(path)


def ids_of_lists(path):
  write_features(path, {"img": np.eye(2, dtype=np.float32)}, {"id": ["a", "b"]})
  pq.write_table(pa.table({"id": [[1], [2]]}), path / "metadata/metadata_0000.parquet")
  FeatureStore.open(path).check_ids()


def settings_of_a_list(path):
  path.mkdir()
  about = {"format": 2, "width": 3, "heads": {"text": {"form": "static", "settings": [1]}}, "info": {}}
  (path / "adapter.json").write_text(json.dumps(about))
  load(path)


def later_meta(path):
  write_features(path, {"img": np.eye(2, dtype=np.float32)}, {"id": ["a", "b"]}, {})
  (path / "meta.json").write_text(json.dumps({"version": 2}))
  FeatureStore.open(path)


def damaged_metadata(path):
  write_features(path, {"img": np.eye(2, dtype=np.float32)}, {"id": ["a" * 50, "b"]}, {})
  (table,) = (path / "metadata").iterdir()
  data = bytearray(table.read_bytes())
  data[4:40] = bytes(36)  # the first page: Arrow names no file
  table.write_bytes(data)
  FeatureStore.open(path).check_ids()


def semi_positives(path):
  path.write_bytes(b"PK\3\4")
  mining.load_semi_positives(path)


@pytest.mark.parametrize(
  ("read", "message"),
  [
    (short_row, "has Usage ''"),
    (truth_of_numbers, "query 0 is a float, wanted a dict"),
    (truth_of_words, "query 0, ok holds no numbers"),
    (truth_too_large, "is not a whole pickle"),
    (numbered_ids, "holds no features with their ids"),
    (endless_heap, "has an entry of no length"),
    (ranks, "is not a whole .npy"),
    (features, "is truncated or no .npy file"),
    (ids_of_lists, "has a list where a name is wanted"),
    (settings_of_a_list, "its head for 'text' has no form or no settings"),
    (later_meta, "is of version 2, and this one reads 1: upgrade"),
    (damaged_metadata, r"metadata_0000\.parquet is truncated or no Parquet file"),
    (semi_positives, "holds no semi-positives, or is damaged"),
  ],
)
def test_it_is_named_in_one_error(read, message, tmp_path):
  path = tmp_path / "given"
  with pytest.raises(ValueError, match=message) as raised:
    read(path)
  assert str(path) in str(raised.value)
