import concurrent.futures
import decimal
import shutil
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qat_jax.datasets import UnreadableImage
from qat_jax.datasets.files import listed
from qat_jax.datasets.parquet import ParquetSource
from qat_jax.datasets.pictures import decode
from qat_jax.datasets.splits import open_source, sources
from tests.qat_jax.datasets.corpora import parquet_files, picture


def test_rows_come_in_the_order_of_files_and_rows(tmp_path):
  source = ParquetSource(parquet_files(tmp_path / "p"))
  assert len(source) == 12 and source.groups == [[0, 4, 6]] * 2
  assert [source.about(i)["id"] for i in (0, 5, 6, 11)] == ["a/0", "a/5", "b/0", "b/5"]
  record = source[9]
  assert (record["caption"], record["instance"], record["price"]) == ("toy no. 9", "4", 4.5)
  assert "image" not in source.about(9)
  assert np.asarray(decode(record))[0, 0].tolist() == [9, 40, 7]
  with pytest.raises(IndexError, match="position 12"):
    source[12]


def test_threads_read_the_same_rows(tmp_path):
  source = ParquetSource(parquet_files(tmp_path / "p", names="abcdef", per_group=1))
  order = np.random.default_rng(0).permutation(36)
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    found = list(pool.map(lambda i: source[int(i)], order))
  assert [decode(record).getpixel((0, 0))[0] for record in found] == order.tolist()
  assert len(source._held._results) <= 8


def test_other_layouts_are_understood(tmp_path):
  (tmp_path / "q").mkdir()
  columns = {
    "picture": [picture(3), None],
    "sentences": [["first", "second"], []],
    "id": [17, 18],
    "split": ["train", "val"],
  }
  pq.write_table(pa.table(columns), tmp_path / "q/x.parquet")
  with pytest.raises(ValueError, match=r"no column of image bytes \(picture binary, .*name it image or img"):
    ParquetSource(tmp_path / "q")
  pq.write_table(pa.table(columns).rename_columns(["Image", *list(columns)[1:]]), tmp_path / "q/x.parquet")
  source = ParquetSource(tmp_path / "q")
  assert source.about(0) == {"id": "17", "caption": "first", "instance": None, "split": "train"}
  assert source.about(1)["caption"] is None
  with pytest.raises(UnreadableImage, match="'18' cannot be read: the column 'Image' is empty"):
    source[1]


def test_what_is_no_parquet_is_refused(tmp_path):
  folder = parquet_files(tmp_path / "p")
  whole = (folder / "a.parquet").read_bytes()
  (folder / "a.parquet").write_bytes(whole[:-20])
  with pytest.raises(ValueError, match=r"a\.parquet is no whole Parquet file"):
    ParquetSource(folder)
  (folder / "a.parquet").write_bytes(whole)


def test_files_may_have_other_columns(tmp_path):
  folder = parquet_files(tmp_path / "p")
  parquet_files(folder, names=("c",), colour=str, price=lambda i: f"{i} EUR")
  pq.write_table(pa.table({"url": ["http://x"]}), folder / "d.parquet")
  source = ParquetSource(folder)
  assert len(source) == 18 and source.left_out == {"Parquet files without image bytes": ["d.parquet"]}
  assert "colour" not in source.about(0) and source.about(12)["colour"] == "0"
  assert (source.about(0)["price"], source.about(12)["price"]) == (0.0, "0 EUR")


def test_files_make_a_retrieval_set_by_their_names(tmp_path):
  names = ("train-00000-of-00001", "validation-00000-of-00001", "test-00000-of-00001")
  places = sources("parquet", "", str(parquet_files(tmp_path / "p", names=names)))
  assert [len(places[p][0]) for p in ("train", "val/gallery", "test/gallery")] == [6, 6, 6]
  assert places["test/text_queries"][0][0]["caption"] == "toy no. 12"


def test_a_short_program_that_reads_pictures_ends_as_it_should(tmp_path):
  folder = parquet_files(tmp_path / "p", names=("a",), rows=2)
  with listed(folder, ".parquet")[0].for_arrow() as opened:
    assert isinstance(opened, pa.NativeFile)  # Arrow's threads outlive Python's files, which aborts one run of eight
  script = "import sys; from qat_jax.datasets.parquet import ParquetSource; print(ParquetSource(sys.argv[1])[1]['id'])"
  ran = subprocess.run([sys.executable, "-c", script, str(folder)], capture_output=True, text=True)
  assert (ran.returncode, ran.stdout) == (0, "a/1\n")


def test_ids_that_repeat_are_refused_at_once_and_odd_types_are_read(tmp_path):
  (tmp_path / "p").mkdir()
  latin = pa.Array.from_buffers(pa.string(), 1, pa.array([b"caf\xe9"]).buffers())
  columns = {"Image": pa.array([picture(3)], pa.binary_view()), "id": [decimal.Decimal("7.00")], "note": latin}
  for name in "ab":
    pq.write_table(pa.table(columns), tmp_path / f"p/{name}.parquet")
  with pytest.raises(ValueError, match="p: 1 ids occur more than once: '7'"):
    ParquetSource(tmp_path / "p")
  record = ParquetSource(tmp_path / "p/a.parquet")[0]
  assert (record["id"], decode(record).getpixel((0, 0))[0]) == ("7", 3) and "note" not in record
  shutil.move(tmp_path / "p/a.parquet", tmp_path / "p/metadata.parquet")  # a name of tables, with pictures in it
  (tmp_path / "p/b.parquet").unlink()
  assert len(open_source("", "", tmp_path / "p")) == 1
