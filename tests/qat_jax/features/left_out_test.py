"""Folders and tars of other people through an extraction: what is encoded, printed, and written to left_out.json."""

import io
import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from qat_jax.datasets import files, folder
from qat_jax.datasets.splits import open_source, sources
from qat_jax.datasets.tiles import Tiles
from qat_jax.features.extraction import extract
from tests.qat_jax.datasets.corpora import parquet_files, picture, tar_shards, write_tar
from tests.qat_jax.features.extraction_test import Encoder


def extracted(source, out):
  """Returns the captions by id, and the content of left_out.json, of a source that is encoded by what it is."""
  store = extract(open_source("", "", source), Encoder(), out, ("img",), progress=False)["img"]
  captions = dict(zip(store.ids.tolist(), store.column("caption").tolist(), strict=True))
  return captions, json.loads((out / "left_out.json").read_text())


def test_a_phones_folder_is_read_and_what_is_not_opened_is_named(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(folder, "opened_endings", lambda: tuple(files.PILLOW))  # as without pillow-heif
  (tmp_path / "phone").mkdir()
  for name, kind in (("a.avif", "AVIF"), ("b.jfif", "JPEG"), ("c.JPG", "JPEG"), ("d.jp2", "JPEG2000")):
    Image.new("RGB", (8, 8), (200, 0, 0)).save(tmp_path / "phone" / name, kind)
  for name in ("1.HEIC", "2.HEIC", "3.heic", "4.heic", "film.MOV"):
    (tmp_path / "phone" / name).write_bytes(b"\0\0\0\x18ftypheic" + b"\0" * 50)
  captions, left_out = extracted(tmp_path / "phone", tmp_path / "out")
  assert list(captions) == ["a.avif", "b.jfif", "c.JPG", "d.jp2"]
  kind = ".heic files; pip install 'qat-jax[heif]' opens them"
  assert left_out == {kind: ["1.HEIC", "2.HEIC", "3.heic", "4.heic"], ".mov files": ["film.MOV"]}
  told = capsys.readouterr().out
  assert f"{tmp_path / 'out'}: left out: 4 {kind} (1.HEIC, 2.HEIC, 3.heic, …)\n" in told
  assert f"{tmp_path / 'out'}: left out: 1 .mov files (film.MOV)\n" in told


def test_a_tar_of_macos_gives_its_pictures(tmp_path):
  members = {"._0": {"jpg": b"\0\5\x16\7"}, "0": {"jpg": picture(0), "txt": "no. 0"}, "__MACOSX/1": {"jpg": b"\0"}}
  write_tar(tmp_path / "a.tar", members)
  captions, left_out = extracted(tmp_path / "a.tar", tmp_path / "out")
  assert captions == {"a/0": "no. 0"}
  assert left_out == {"system and hidden files": ["a.tar/._0.jpg", "a.tar/__MACOSX/1.jpg"]}


def test_what_img2dataset_writes_is_a_folder_of_pictures(tmp_path):
  inside = tmp_path / "set/00000"
  inside.mkdir(parents=True)
  for i in range(3):
    (inside / f"{i}.jpg").write_bytes(picture(i))
    (inside / f"{i}.txt").write_text(f"red no. {i}")
    (inside / f"{i}.json").write_text("{}")
  pq.write_table(pa.table({"url": ["http://x"], "key": ["0"]}), tmp_path / "set/00000.parquet")
  captions, left_out = extracted(tmp_path / "set", tmp_path / "out")
  assert captions == {f"00000/{i}.jpg": f"red no. {i}" for i in range(3)}
  assert left_out == {".json files": [f"00000/{i}.json" for i in range(3)], ".parquet files": ["00000.parquet"]}


@pytest.mark.parametrize("views", [0, 1])
@pytest.mark.parametrize(("kind", "write"), [("webdataset", tar_shards), ("parquet", parquet_files)])
def test_all_places_and_crops_of_tars_and_parquet_files_are_encoded_once(tmp_path, kind, write, views):
  where = write(tmp_path / "s", rows=30)
  places = {name: source for name, (source, _) in sources(kind, "", where, views=views).items()}
  for name, source in {**places, "crops": Tiles(open_source(kind, "", where), [2])}.items():
    for _ in range(2):  # the second time it is there
      store = extract(source, Encoder(), tmp_path / "out" / name, ("img",), progress=False)["img"]
    assert store.ids.tolist() == [source[i]["id"] for i in range(len(source))]
  for path in where.iterdir():
    os.utime(path, ns=(5, 5))
  with pytest.raises(ValueError, match="source"):
    extract(next(iter(sources(kind, "", where, views=views).values()))[0], Encoder(), tmp_path / "out/train", ("img",))


@pytest.mark.parametrize("kind", ["tars", "parquet", "pictures"])
def test_brackets_in_a_path_are_no_pattern(tmp_path, kind):
  place = tmp_path / "shop [2024]" / kind
  place.mkdir(parents=True)
  if kind == "tars":
    write_tar(place / "x.tar", {"0": {"png": picture(9)}})
  elif kind == "parquet":
    pq.write_table(pa.table({"image": [picture(9)]}), place / "x.parquet")
  else:
    (place / "x.png").write_bytes(picture(9))
  for where in (place, f"{place}/*.tar") if kind == "tars" else (place,):
    records = list(open_source("", "", where))
    assert [Image.open(io.BytesIO(record["image"])).getpixel((0, 0)) for record in records] == [(9, 40, 7)]
