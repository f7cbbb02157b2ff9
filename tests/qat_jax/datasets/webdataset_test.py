import gzip
import json
import logging
import os
import shutil
import tarfile

import fsspec
import numpy as np
import pytest

from qat_jax.datasets import UnreadableImage
from qat_jax.datasets.pictures import decode
from qat_jax.datasets.splits import sources
from qat_jax.datasets.webdataset import WebdatasetSource
from qat_jax.features.records import metadata_table
from tests.qat_jax.datasets.corpora import picture, tar_shards, write_tar


def test_records_come_in_the_order_of_shards_and_members(tmp_path):
  source = WebdatasetSource(tar_shards(tmp_path / "s"))
  assert len(source) == 12
  assert [source.about(i)["id"] for i in (0, 5, 6)] == ["0000/00000", "0000/00005", "0001/00006"]
  record = source[7]
  assert (record["caption"], record["instance"], record["price"]) == ("toy no. 7", "toy3", 7)
  assert "tags" not in record and "image" not in source.about(7)
  assert np.asarray(decode(record))[0, 0].tolist() == [7, 40, 7]
  for outside in (-1, 12):
    with pytest.raises(IndexError, match=f"position {outside} asked of a source of 12"):
      source[outside]


def test_one_file_a_pattern_and_an_address_are_opened(tmp_path):
  folder = tar_shards(tmp_path / "s", shards=3)
  assert len(WebdatasetSource(folder / "0001.tar")) == 6
  assert len(WebdatasetSource(f"{folder}/000[12].tar")) == 12
  memory = fsspec.filesystem("memory")
  for path in folder.iterdir():
    memory.pipe_file(f"/corpus/{path.name}", path.read_bytes())
  far, near = WebdatasetSource("memory://corpus"), WebdatasetSource(folder)
  assert [far[i] for i in range(len(far))] == [near[i] for i in range(len(near))]


def test_keys_of_two_shards_may_be_the_same(tmp_path):
  for name in ("a/1.tar", "b/1.tar"):
    (tmp_path / name).parent.mkdir()
    write_tar(tmp_path / name, {"x": {"jpg": picture(1)}})
  source = WebdatasetSource(f"{tmp_path}/*/1.tar")
  assert [source.about(i)["id"] for i in range(2)] == ["a/1/x", "b/1/x"]
  assert source.about(0)["caption"] is None and source.about(0)["instance"] is None


def test_a_shard_that_was_cut_short_gives_what_it_has_and_is_named(tmp_path, caplog):
  folder = tar_shards(tmp_path / "s")
  data = (folder / "0000.tar").read_bytes()
  # within the picture of the fifth record: a record has three members of a header and one block each
  (folder / "0000.tar").write_bytes(data[: 4 * 3 * 1024 + 512 + 40])
  with caplog.at_level(logging.WARNING):
    source = WebdatasetSource(folder)
  assert "0000.tar was cut short" in caplog.text
  assert len(source) == 4 + 1 + 6
  assert source[3]["caption"] == "toy no. 3" and source[5]["id"] == "0001/00006"
  with pytest.raises(UnreadableImage, match=r"'0000/00004' cannot be read: 0000\.tar was cut short"):
    source[4]


def test_tars_one_after_the_other_are_all_read(tmp_path):
  folder = tar_shards(tmp_path / "s", rows=3)
  expected = [{**record, "id": record["id"][5:]} for record in WebdatasetSource(folder)]
  both = b"".join((folder / name).read_bytes() for name in ("0000.tar", "0001.tar"))
  (tmp_path / "both.tar").write_bytes(both)
  source = WebdatasetSource(tmp_path / "both.tar")
  assert [{**record, "id": record["id"][5:]} for record in source] == expected and not source.left_out.get(CUT)


RECORD = 3 * 1024  # bytes of a record of tar_shards: a header and a block a member


@pytest.mark.parametrize(
  ("damage", "records"),
  [
    (lambda data: data[: 2 * RECORD], 2),  # between two records
    (lambda data: data[: 2 * RECORD + 100], 2),  # within a header
    (lambda data: data[: 3 * RECORD] + b"x" * 512 + data[3 * RECORD + 512 :], 3),
  ],
)
def test_a_shard_that_ends_without_its_end_mark_is_said_to_be_cut_short(tmp_path, caplog, damage, records):
  path = tar_shards(tmp_path / "s", shards=1) / "0000.tar"
  path.write_bytes(damage(path.read_bytes()))
  source = WebdatasetSource(path)
  assert len(source) == records and "0000.tar was cut short or is damaged" in caplog.text
  assert source.left_out[CUT] == ["0000.tar"]


def test_a_pointer_and_a_folder_among_the_shards_are_named(tmp_path):
  tar_shards(tmp_path / "s", shards=1)
  tar_shards(tmp_path / "s/more", shards=1)
  left_out = WebdatasetSource(tmp_path / "s").left_out
  assert left_out[f"folders; a pattern, {tmp_path}/s/*/*.tar, reads them"] == ["more"]
  (tmp_path / "s/0001.tar").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n")
  with pytest.raises(ValueError, match=r"0001\.tar is a pointer of Git LFS, not the file; fetch it"):
    WebdatasetSource(tmp_path / "s")


def test_broken_members_are_named_and_the_rest_is_read(tmp_path):
  records = {
    "a": {"png": picture(1), "json": "{no json"},
    "b": {"png": b"no image"},
    "c": {"txt": "a caption alone"},
    "d": {"png": picture(4)},
  }
  write_tar(tmp_path / "x.tar", records)
  source = WebdatasetSource(tmp_path)
  assert [source.about(i)["id"] for i in range(3)] == ["x/a", "x/b", "x/d"]
  with pytest.raises(UnreadableImage, match=r"'x/a' cannot be read: its \.json"):
    source[0]
  with pytest.raises(UnreadableImage, match="'x/b' cannot be read"):
    decode(source[1])
  decode(source[2])


def test_what_is_no_tar_of_pictures_is_refused(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"no \.tar files"):
    WebdatasetSource(tmp_path)
  tar_shards(tmp_path / "s", shards=1)
  (tmp_path / "z").mkdir()
  (tmp_path / "z/a.tar").write_bytes(gzip.compress((tmp_path / "s/0000.tar").read_bytes()))
  with pytest.raises(ValueError, match=r"a\.tar is empty or compressed"):
    WebdatasetSource(tmp_path / "z")
  (tmp_path / "z/a.tar").write_bytes(b"something else" * 100)
  with pytest.raises(ValueError, match=r"a\.tar is no tar file"):
    WebdatasetSource(tmp_path / "z")
  write_tar(tmp_path / "z/a.tar", {"a": {"txt": "x"}})
  with pytest.raises(ValueError, match="hold no images"):
    WebdatasetSource(tmp_path / "z")


def test_a_shard_that_changed_is_another_source(tmp_path):
  folder = tar_shards(tmp_path / "s")
  before = [WebdatasetSource(folder).stamp(i) for i in range(12)]
  assert before == [WebdatasetSource(folder).stamp(i) for i in range(12)]
  os.utime(folder / "0001.tar", ns=(5, 5))
  after = [WebdatasetSource(folder).stamp(i) for i in range(12)]
  assert after[:6] == before[:6] and after[6:] != before[6:]


def test_shards_make_a_retrieval_set_by_their_names_or_by_instance(tmp_path):
  folder = tar_shards(tmp_path / "s", shards=3, rows=10)
  places = sources("webdataset", "", str(folder))
  assert sorted(places) == sorted(
    ["train", *(f"{p}/{k}" for p in ("val", "test") for k in ("gallery", "text_queries", "image_queries"))]
  )
  assert sum(len(places[p][0]) for p in ("train", "val/gallery", "test/gallery")) == 30
  for old, new in (("0000", "train-0"), ("0001", "validation-0"), ("0002", "test-0")):
    shutil.move(folder / f"{old}.tar", folder / f"{new}.tar")
  places = sources("webdataset", "", str(folder))
  assert [len(places[p][0]) for p in ("train", "val/gallery", "test/gallery")] == [10, 10, 10]
  assert places["val/gallery"][0][0]["id"].startswith("validation-0/")


CUT = "tars that were cut short or are damaged, of which the rest is missing"
PAIR = {"Paul.png": picture(1), "Peter.png": picture(2)}
FURTHER = "further pictures of records in tars"
TWICE = "members that occur twice, of which the last counts"
SYSTEM = "system and hidden files"
# Members of a tar → what is read of each record (key, caption, red), and what is left out.
RECORDS = {
  "names with periods": ({"Mug 2.0 (front)": {"png": picture(1), "txt": "x"}}, ["Mug 2.0 (front) x 1"], {}),
  "a depth map first": (
    {"0": {"depth.png": picture(3), "png": picture(4), "txt": "plain", "cls": "7"}},
    ["0 plain 4"],
    {FURTHER: ["a.tar/0.depth.png"], ".cls files": ["a.tar/0.cls"]},
  ),
  "two eyes": (
    {"f": {"left.png": picture(5), "right.png": picture(6)}},
    ["f None 5"],
    {FURTHER: ["a.tar/f.right.png"]},
  ),
  "a depth map alone": ({"0": {"DEPTH.png": picture(3)}}, ["0 None 3"], {}),
  "texts of their own": (
    {"St": {"Paul.png": picture(7), "Paul.txt": "Paul", "Peter.PNG": picture(8), "Peter.txt": "Peter"}},
    ["St.Paul Paul 7", "St.Peter Peter 8"],
    {},
  ),
  "fields of their own": (
    {"p": {"v2.png": picture(7), "v2.json": '{"caption": "2"}', "v3.png": picture(8), "v3.json": '{"caption": "3"}'}},
    ["p.v2 2 7", "p.v3 3 8"],
    {},
  ),
  "numbers of their own": (
    {"photo": {"v2.png": picture(1), "v3.png": picture(2), "depth.png": picture(3)}},
    ["photo.v2 None 1", "photo.v3 None 2"],
    {FURTHER: ["a.tar/photo.depth.png"]},
  ),
  "numbers beside a plain ending": (
    {"photo": {"v2.png": picture(1), "png": picture(2)}, "p.v3": {"png": picture(4)}},
    ["photo None 2", "p None 4"],
    {FURTHER: ["a.tar/photo.v2.png"]},
  ),
  "numbers that share fields": (
    {"0": {"view1.png": picture(1), "view2.png": picture(2), "json": '{"caption": "x"}'}},
    ["0 x 1"],
    {FURTHER: ["a.tar/0.view2.png"]},
  ),
  "paths with periods": (
    {"././1": {"png": picture(1)}, "x//1": {"png": picture(2)}, "1": {"txt": "x"}},
    ["1 x 1", "x/1 None 2"],
    {},
  ),
  "names of their own": ({"St": PAIR}, ["St.Paul None 1", "St.Peter None 2"], {}),
  "one text for both": ({"St": {**PAIR, "txt": "both"}}, ["St both 1"], {FURTHER: ["a.tar/St.Peter.png"]}),
  "of macOS": ({"._0": {"png": b"of macOS"}, "1": {"png": picture(1)}}, ["1 None 1"], {SYSTEM: ["a.tar/._0.png"]}),
  "twice, and blank text": (
    {
      "0": {"png": picture(1), "json": '{"caption": "of the fields"}', "txt": " "},
      "x": {"png": picture(3)},
      "./0": {"png": picture(2)},
    },
    ["0 of the fields 2", "x None 3"],
    {TWICE: ["a.tar/./0.png"]},
  ),
}


@pytest.mark.parametrize("kind", RECORDS)
def test_members_are_the_records_that_their_names_mean_and_what_is_left_out_is_named(tmp_path, kind):
  members, expected, left_out = RECORDS[kind]
  write_tar(tmp_path / "a.tar", members)
  source = WebdatasetSource(tmp_path)
  records = [source[i] for i in range(len(source))]
  assert [f"{r['id'][2:]} {r['caption']} {decode(r).getpixel((0, 0))[0]}" for r in records] == expected
  assert source.left_out == left_out


@pytest.mark.parametrize("ending", ["json", "txt"])
def test_other_text_than_utf8_is_refused_whichever_member_has_it(tmp_path, ending):
  write_tar(tmp_path / "a.tar", {"0": {"png": picture(1), ending: b'{"caption":\n"caf\xe9"}'}})
  with pytest.raises(ValueError, match=r"a\.tar, '0', its \.?(json|text), line 2, is not UTF-8 \(byte 0xe9\)"):
    WebdatasetSource(tmp_path).about(0)


def test_names_that_are_not_utf8_are_refused(tmp_path):
  with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as tar:
    tar.addfile(tarfile.TarInfo("caf\xe9.png"))
  with pytest.raises(ValueError, match=r"a\.tar has a member 'caf\\udce9\.png', which is not UTF-8"):
    WebdatasetSource(tmp_path)


def test_a_field_that_may_be_a_caption_is_named_and_odd_fields_stop_nothing(tmp_path):
  about = {"description": "a mug", "relevant": True, "image": "x", "split": "Validation", "tags": [1], "id": "x"}
  write_tar(tmp_path / "a.tar", {"0": {"png": picture(1), "json": json.dumps(about)}, "1": {"png.gz": b""}})
  source = WebdatasetSource(tmp_path)
  name = "columns as captions; call the one that holds them caption"
  assert source.left_out == {
    ".gz files": ["a.tar/1.png.gz"],
    name: ["description"],
    "columns called image, which is the picture": ["image"],
    "columns of no plain values": ["tags"],
    "fields called id, as items of tars are named by shard and member": ["id"],
  }
  record = source[0]
  assert decode(record).getpixel((0, 0))[0] == 1 and record["split"] == "val"
  assert metadata_table([record]).to_pylist()[0]["relevant"] is True
