import errno
import io
import json
import os
import shutil
import stat
import time
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qat_jax import stages as files
from qat_jax.features import extraction
from qat_jax.features.extraction import extract
from qat_jax.features.store import FeatureStore


def png(position):
  file = io.BytesIO()
  Image.new("RGB", (4, 4), (position % 256, 2 * position % 256, 7)).save(file, "PNG")
  return file.getvalue()


class Source:
  def __init__(self, items, broken=(), **changes):
    self.items, self.broken, self.changes = items, set(broken), changes

  def __len__(self):
    return self.items

  def __getitem__(self, position):
    image = b"no image" if position in self.broken else png(position)
    record = {"id": f"item{position}", "image": image, "caption": f"no. {position}", "instance": f"i{position // 2}"}
    return {**record, "split": "a", "year": 2000 + position, **self.changes.get(f"at{position}", {})}


class Encoder:
  name, revision, width, max_tokens, truncated = "fake", "1", 4, 8, 0

  def __init__(self, pause=0.0, broken=None):
    self.pause, self.broken, self.seen = pause, broken, []

  def images(self, images):
    time.sleep(self.pause)
    self.seen += [np.asarray(image)[0, 0, 0] for image in images]
    rows = np.array([np.asarray(image, np.float32)[0, 0] for image in images])
    return self.unit(np.concatenate([rows + 1, np.full((len(images), 1), len(images))], axis=1))

  def texts(self, texts):
    self.truncated += sum(len(text) > self.max_tokens for text in texts)
    rows = np.array([[len(text), ord(text[-1]), len(texts), 1] for text in texts], np.float32)
    if self.broken in texts:
      rows[texts.index(self.broken)] = np.nan
    return self.unit(rows)

  def unit(self, rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def contents(folder):
  """Returns the files of a folder that nobody writes, but for how fast it was made and what a kill left half done."""
  files = [p for p in sorted(Path(folder).rglob("*")) if p.is_file() and p.suffix != ".tmp"]
  found = {str(p.relative_to(folder)): p.read_bytes() for p in files}
  if "meta.json" in found:
    about = json.loads(found["meta.json"])  # whose own checksum is of the speed too
    found["meta.json"] = {name: x for name, x in about.items() if name not in ("speed", "checksum")}
  return found


def test_features_and_metadata_stand_in_the_order_of_the_source(tmp_path):
  encoder = Encoder()
  stores = extract(Source(25), encoder, tmp_path / "f", batch_size=4, rows_per_shard=10, progress=False)
  assert [shard.path.name for shard in stores["img"].shards] == [f"img_emb_{i:04d}.npy" for i in range(3)]
  assert stores["img"].dtype == np.float16
  assert stores["img"].ids.tolist() == [f"item{i}" for i in range(25)]
  assert stores["img"].column("instance")[7] == "i3"
  assert stores["text"].column("year").tolist() == list(range(2000, 2025))
  assert stores["text"].columns == ["id", "instance", "caption", "split", "year"]
  batch_of = ([4] * 8 + [2] * 2) * 2 + [4] * 4 + [1]  # no batch crosses a shard of ten
  expected_ND = np.array([[i + 1, 2 * i + 1, 8, batch_of[i]] for i in range(25)])
  expected_ND = expected_ND / np.linalg.norm(expected_ND, axis=1, keepdims=True)
  np.testing.assert_allclose(stores["img"][:], expected_ND, atol=1e-3)
  stores["img"].verify()
  stores["text"].verify()
  meta = stores["img"].meta
  assert (meta["encoder"], meta["revision"], meta["space"], meta["normalised"]) == ("fake", "1", "frozen", True)


def test_the_share_of_the_time_that_the_encoder_computes_is_told(tmp_path):
  for name, pause, low, high in (("busy", 0.05, 0.7, 1), ("waiting", 0, 0, 0.7)):
    extract(Source(40), Encoder(pause), tmp_path / name, ("img",), batch_size=4, progress=False)
    speed = json.loads((tmp_path / name / "meta.json").read_text())["speed"]
    assert low <= speed["encoding_share"] <= high
    assert 0 < speed["items_per_second"] < (4 / pause if pause else np.inf)


def test_an_extraction_that_is_done_encodes_nothing_again(tmp_path):
  extract(Source(25), Encoder(), tmp_path, rows_per_shard=10, progress=False)
  again = Encoder()
  assert len(extract(Source(25), again, tmp_path, rows_per_shard=10, progress=False)["img"]) == 25
  assert again.seen == []


def test_only_missing_shards_are_encoded_after_a_failure(tmp_path):
  with pytest.raises(ValueError, match=r"fake \(text\): 1 items have NaN or infinite features: 'item17'"):
    extract(Source(25), Encoder(broken="no. 17"), tmp_path / "f", batch_size=4, rows_per_shard=10, progress=False)
  with pytest.raises(ValueError, match="is not finished"):
    FeatureStore.open(tmp_path / "f")
  second = Encoder()
  extract(Source(25), second, tmp_path / "f", batch_size=4, rows_per_shard=10, progress=False)
  assert second.seen == list(range(10, 25))
  extract(Source(25), Encoder(), tmp_path / "g", batch_size=4, rows_per_shard=10, progress=False)
  assert contents(tmp_path / "f") == contents(tmp_path / "g")


def test_notes_that_a_kill_left_in_a_finished_folder_are_removed(tmp_path, monkeypatch):
  with monkeypatch.context() as patch:
    patch.setattr(shutil, "rmtree", lambda *args, **settings: None)
    extract(Source(25), Encoder(), tmp_path / "f", rows_per_shard=10, progress=False)
  assert len(FeatureStore.open(tmp_path / "f")) == 25
  for folder in ("f", "g"):
    extract(Source(25), Encoder(), tmp_path / folder, rows_per_shard=10, progress=False)
  assert contents(tmp_path / "f") == contents(tmp_path / "g")


def test_notes_without_their_plan_are_not_believed(tmp_path):
  with pytest.raises(ValueError, match="NaN"):
    extract(Source(25), Encoder(broken="no. 17"), tmp_path, rows_per_shard=10, progress=False)
  (tmp_path / "incomplete/plan.json").unlink()
  shutil.rmtree(tmp_path / "img_emb")
  shutil.rmtree(tmp_path / "text_emb")
  shutil.rmtree(tmp_path / "metadata")
  assert len(extract(Source(25), Encoder(), tmp_path, rows_per_shard=10, progress=False)["img"]) == 25


@pytest.mark.parametrize("finished", [False, True], ids=["begun", "finished"])
@pytest.mark.parametrize(
  ("change", "words"),
  [
    ({"dtype": "float32"}, "dtype was 'float16', is 'float32'"),
    ({"batch_size": 5}, "batch_size was 4, is 5"),
    ({"source": lambda: Source(25, at24={"id": "new"})}, "source.ids was"),
    ({"encoder": lambda: type("Other", (Encoder,), {"revision": "2"})()}, "revision was '1', is '2'"),
  ],
)
def test_other_settings_never_mix_with_what_is_there(tmp_path, finished, change, words):
  settings = {"batch_size": 4, "rows_per_shard": 10, "progress": False}
  if finished:
    extract(Source(25), Encoder(), tmp_path, **settings)
  else:
    with pytest.raises(ValueError, match="NaN"):
      extract(Source(25), Encoder(broken="no. 17"), tmp_path, **settings)
  before = contents(tmp_path)
  source, encoder = change.get("source", lambda: Source(25))(), change.get("encoder", Encoder)()
  with pytest.raises(
    ValueError, match=f"made with other inputs or settings.*{words}.*Delete it or choose another folder"
  ):
    extract(
      source, encoder, tmp_path, **{**settings, **{k: v for k, v in change.items() if k in ("dtype", "batch_size")}}
    )
  assert contents(tmp_path) == before


def test_a_folder_with_other_things_in_it_is_left_alone(tmp_path):
  (tmp_path / "holiday.jpg").write_bytes(b"")
  with pytest.raises(FileExistsError, match=r"\['holiday.jpg'\]"):
    extract(Source(3), Encoder(), tmp_path, progress=False)


def test_unreadable_images_are_left_out_and_listed(tmp_path, capsys):
  stores = extract(Source(300, broken=[4, 111, 112]), Encoder(), tmp_path, rows_per_shard=100, progress=False)
  assert [shard.rows for shard in stores["img"].shards] == [99, 98, 100]
  assert len(stores["text"]) == 297
  assert "item4" not in stores["img"].ids
  listed = json.loads((tmp_path / "unreadable.json").read_text())
  assert [(entry["position"], entry["id"]) for entry in listed] == [(4, "item4"), (111, "item111"), (112, "item112")]
  assert "UnidentifiedImageError" in listed[0]["reason"]
  assert stores["img"].meta["unreadable"] == 3
  assert "left out: 3 pictures that cannot be read (item4: " in capsys.readouterr().out


def test_a_shard_of_unreadable_images_alone_is_empty(tmp_path, monkeypatch):
  monkeypatch.setattr(extraction, "MOST_UNREADABLE", 0.5)
  stores = extract(Source(8, broken=[2, 3]), Encoder(), tmp_path, rows_per_shard=2, progress=False)
  assert [shard.rows for shard in stores["img"].shards] == [2, 0, 2, 2]
  np.testing.assert_array_equal(stores["img"][1:4], stores["img"][np.array([1, 2, 3])])
  assert stores["img"].ids[1:3].tolist() == ["item1", "item4"]


def test_more_than_one_percent_unreadable_stops_the_extraction(tmp_path):
  with pytest.raises(ValueError, match=r"3 images of 200 cannot be read, more than 1%: 'item0' \(Unidentified"):
    extract(Source(200, broken=[0, 1, 50, 60]), Encoder(), tmp_path, rows_per_shard=40, progress=False)


def test_unreadable_images_are_counted_over_the_whole_set(tmp_path):
  settings = {"rows_per_shard": 40, "progress": False}
  stores = extract(Source(13, broken=[4]), Encoder(), tmp_path / "small", beside=(150, 0), **settings)
  assert (len(stores["img"]), stores["img"].meta["unreadable"]) == (12, 1)
  with pytest.raises(ValueError, match=r"2 images of 163 cannot be read, more than 1%: 'item4'"):
    extract(Source(13, broken=[4]), Encoder(), tmp_path / "next", beside=(150, 1), **settings)


def test_items_without_a_caption_are_left_out_of_texts_and_counted(tmp_path, capsys):
  source = Source(150, at7={"caption": None}, at111={"caption": ""})
  with pytest.raises(ValueError, match="NaN"):  # a failure between the two loses no count
    extract(source, Encoder(broken="no. 60"), tmp_path, rows_per_shard=50, progress=False)
  stores = extract(source, Encoder(), tmp_path, rows_per_shard=50, progress=False)
  assert len(stores["img"]) == len(stores["text"]) == 148 and not {"item7", "item111"} & set(stores["img"].ids)
  assert stores["text"].meta["without_caption"] == 2
  assert f"{tmp_path}: left out: 2 items without a caption (item7, item111)" in capsys.readouterr().out
  pictures = extract(source, Encoder(), tmp_path / "pictures", kinds=("img",), progress=False)["img"]
  assert (len(pictures), pictures.meta["without_caption"]) == (150, 0)


def test_texts_are_encoded_without_looking_at_images(tmp_path):
  source = Source(5, broken=range(5))
  assert list(extract(source, Encoder(), tmp_path, kinds=("text",), progress=False)) == ["text"]


def test_cut_captions_are_counted_and_reported(tmp_path, capsys):
  source = Source(20, at3={"caption": "much too long"}, at15={"caption": "and longer still"})
  store = extract(source, Encoder(), tmp_path, rows_per_shard=10, progress=False)["text"]
  assert store.meta["truncated_captions"] == 2
  assert "2 captions were longer than the 8 tokens" in capsys.readouterr().out


@pytest.mark.parametrize(
  ("source", "settings", "words"),
  [
    (Source(30, at25={"id": "item3"}), {}, "the id 'item3' occurs again at position 25"),
    (
      Source(3, at0={"caption": None}, at2={"caption": ""}),
      {},
      r"2 items of 3 .* more than half: 'item0', 'item2'.*'img'",
    ),
    (Source(0), {}, "the source is empty"),
    (Source(3), {"kinds": ("image",)}, r"kinds is \('image',\)"),
    (Source(3), {"dtype": "int8"}, "dtype is 'int8'"),
    (Source(3), {"batch_size": 0}, "batch_size is 0"),
  ],
)
def test_bad_input_is_refused(tmp_path, source, settings, words):
  for _ in range(2):  # after a restart too
    with pytest.raises(ValueError, match=words):
      extract(source, Encoder(), tmp_path, **{"rows_per_shard": 10, "progress": False, **settings})


def test_a_disk_that_is_too_small_is_refused_before_any_work(tmp_path, monkeypatch):
  monkeypatch.setattr(shutil, "disk_usage", lambda folder: types.SimpleNamespace(free=100))
  encoder = Encoder()
  with pytest.raises(OSError, match=r"needs 0\.0 MB more") as caught:
    extract(Source(50), encoder, tmp_path, progress=False)
  assert caught.value.errno == errno.ENOSPC
  assert encoder.seen == []


@pytest.mark.parametrize("moment", range(9, 13))
def test_an_end_at_any_file_leaves_none_half_and_the_run_goes_on_to_the_same_bytes(tmp_path, monkeypatch, moment):
  real, left, settings = os.fsync, [moment], {"batch_size": 8, "rows_per_shard": 20, "progress": False}

  def full_after_a_while(handle):
    left[0] -= stat.S_ISREG(os.fstat(handle).st_mode)
    if left[0] < 0:
      raise OSError(errno.ENOSPC, "No space left on device")
    real(handle)

  with monkeypatch.context() as patch:
    patch.setattr(files.os, "fsync", full_after_a_while)
    with pytest.raises(OSError, match=r"no room for .*free some space and run again"):
      extract(Source(200, broken=[23]), Encoder(), tmp_path / "f", **settings)
  assert not list(tmp_path.rglob("*.tmp"))
  for folder in ("f", "g"):
    extract(Source(200, broken=[23]), Encoder(), tmp_path / folder, **settings)
  assert contents(tmp_path / "f") == contents(tmp_path / "g")
