import pathlib
import subprocess
import sys

import chex
import jax
import numpy as np
import pytest

import qat_jax
from qat_jax.adapter import Adapter, Head
from qat_jax.features.store import FeatureStore, write_features
from qat_jax.sealed import read_record, write_record
from qat_jax.stages import lock

WIDTH = 8


@pytest.mark.parametrize("query_type", ["text", "image"])
def test_a_saved_adapter_is_the_same_adapter(adapter, features, query_type, tmp_path):
  adapter.save(tmp_path / "adapter")
  again = qat_jax.load(tmp_path)  # a run's folder
  chex.assert_trees_all_equal(again(features, query_type), adapter(features, query_type))
  assert again.info == {"trained": "here"}
  assert again.heads[query_type].space == adapter.heads[query_type].space


def test_saving_again_replaces_the_adapter(adapter, features, tmp_path, head):
  Adapter(WIDTH, {"text": head("plain")}).save(tmp_path / "a")
  adapter.save(tmp_path / "a")
  assert set(qat_jax.load(tmp_path / "a").heads) == {"text", "image"}
  assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.compile
def test_any_number_of_queries_gives_the_same_rows_without_compiling_for_each(adapter):
  query_QD = np.random.default_rng(1).normal(size=(9, WIDTH)).astype(np.float32)
  whole = adapter(query_QD, "text")
  compiled = adapter._calls["text"]._cache_size()
  for count in (5, 6, 7, 8):
    chex.assert_trees_all_close(adapter(query_QD[:count], "text"), whole[:count], atol=1e-6)
  assert adapter._calls["text"]._cache_size() <= compiled + 1


@pytest.mark.parametrize("dtype", ["<f2", "<f4", ">f4", "<f8", "longdouble"])
def test_an_adaptation_remembers_the_queries_as_they_were(adapter, dtype):
  query_QD = np.random.default_rng(2).normal(size=(3, WIDTH)).astype(np.float16).astype(dtype)
  given, adaptation = query_QD.copy(), adapter(query_QD, "text")
  query_QD[:] = 0  # a buffer that the caller uses again
  np.testing.assert_array_equal(adaptation.frozen, given)
  np.testing.assert_array_equal(adaptation[1:].frozen, given[1:])
  jax.jit(qat_jax.fold)(adaptation)  # it is an array that JAX takes


def test_a_query_type_must_be_named_where_heads_differ(adapter, features, head):
  for call in (adapter, adapter.prepare):
    with pytest.raises(ValueError, match=r"a head for each of \['image', 'text'\] queries; say which"):
      call(features)
    with pytest.raises(ValueError, match="'audio'.*image"):
      call(features, "audio")
  alone = Adapter(WIDTH, {"image": adapter.heads["image"]})
  chex.assert_trees_all_equal(alone(features), adapter(features, "image"))
  equal = Adapter(WIDTH, {name: head("static", maps_gallery=True) for name in ("text", "image")})
  chex.assert_trees_all_equal(equal(features), alone(features))


def test_a_store_of_queries_says_which_head_answers(adapter, features, tmp_path):
  columns = {"id": list("abcde")}
  folder = write_features(tmp_path / "both", {"img": features, "text": features[::-1]}, columns).folder
  for query_type, kind, rows in (("image", "img", features), ("text", "text", features[::-1])):
    store = FeatureStore.open(folder, kind)
    chex.assert_trees_all_equal(adapter(store), adapter(rows, query_type))
  with pytest.raises(ValueError, match="query_type is 'image', but .*both was opened as 'text' features"):
    adapter(FeatureStore.open(folder, "text"), "image")


@pytest.mark.parametrize(
  ("query_QD", "message"),
  [
    (np.ones((2, 5), np.float32), r"\(2, 5\).*\(Q, 8\)"),
    (np.ones((2, WIDTH), np.int32), "int32.*floats"),
    (np.ones((0, WIDTH), np.float32), "no queries"),
    (np.array([[1.0] * WIDTH, [np.nan] * WIDTH]), "query 1 is NaN"),
    (np.zeros((1, WIDTH)), "query 0 is NaN, infinite or zero"),
    (np.full((1, WIDTH), 1e-20), "query 0 is NaN, infinite or zero"),  # whose square float32 does not know
  ],
)
def test_bad_queries_are_refused_with_what_was_got_and_wanted(adapter, query_QD, message):
  with pytest.raises(ValueError, match=message):
    adapter(query_QD, "text")


def test_a_folder_without_an_adapter_is_named(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"no adapter in .*train\.main"):
    qat_jax.load(tmp_path)


def test_parameters_of_another_shape_are_refused(adapter, tmp_path):
  adapter.save(tmp_path / "a")
  about = read_record(tmp_path / "a" / "adapter.json")
  about["heads"]["text"]["settings"]["hidden"] = 9
  write_record(tmp_path / "a" / "adapter.json", about)
  with pytest.raises(ValueError, match=r"text/params/.*another model's"):
    qat_jax.load(tmp_path / "a")


def test_saving_leaves_the_other_files_of_the_folder(tmp_path):
  (tmp_path / "run").mkdir()
  (tmp_path / "run/metrics.jsonl").write_text("{}\n")
  for _ in range(2):
    adapter = Adapter(4, {"text": Head("plain", {}, {"params": {}, "constants": {}})})
    adapter.save(tmp_path / "run")
  assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["adapter.json", "metrics.jsonl"]


def test_equal_heads_are_written_once(tmp_path, head):
  one = head("static", maps_gallery=True)
  Adapter(WIDTH, {"text": one}).save(tmp_path / "one")
  Adapter(WIDTH, {"text": one, "image": head("static", maps_gallery=True)}).save(tmp_path / "two")
  sizes = [path.stat().st_size for name in ("one", "two") for path in (tmp_path / name).glob("*.safetensors")]
  assert len(sizes) == 2 and sizes[0] == sizes[1]
  again = qat_jax.load(tmp_path / "two")
  assert again.heads["image"].fingerprint == one.fingerprint == again.heads["text"].fingerprint


def truncate(path):
  path.write_bytes(path.read_bytes()[:-5])


def garble(path):
  data = bytearray(path.read_bytes())
  data[-1] ^= 1
  path.write_bytes(data)


def hide(path):  # a digit of a setting: shapes stay as they are
  path.write_text(path.read_text().replace('"trained": "here"', '"trained": "hers"'))


def edit(name, value):
  return lambda path: write_record(path, {**read_record(path), name: value})


@pytest.mark.parametrize(
  ("name", "damage", "message"),
  [
    ("params-*.safetensors", truncate, "params-.*safetensors are missing or damaged .*checksum.*save or fetch"),
    ("params-*.safetensors", garble, "are missing or damaged"),
    ("params-*.safetensors", pathlib.Path.unlink, "are missing or damaged"),
    ("adapter.json", hide, "adapter.json describes no adapter: .* is not what was written: its checksum differs"),
    ("adapter.json", edit("width_", 3), r"it has the entries \['width_'\], which are not known here"),
    *[
      ("adapter.json", lambda path, text=text: path.write_text(text), "adapter.json describes no adapter")
      for text in ("", "{", "[" * 100_000, '{"format": 2, "wid', "null", "[]")
    ],
    ("adapter.json", lambda path: path.write_text("{}"), "describes no adapter: it has no entry 'format'"),
    *[
      ("adapter.json", edit(name, value), "describes no adapter")
      for name, value in (("width", 0), ("width", True), ("info", [1]), ("parameters", "x"), ("heads", {"text": 1}))
    ],
    ("adapter.json", edit("parameters", {"file": "params-0.safetensors"}), "describes no adapter"),
    ("adapter.json", edit("parameters", {"file": "../params-0.safetensors", "checksum": "0"}), "is no name of a file"),
    ("adapter.json", edit("format", 3), "it is of format 3, and this version reads up to 2: upgrade qat-jax"),
    ("adapter.json", edit("heads", {"text": {"form": "later", "settings": {}}}), "a form that is not known here"),
    ("adapter.json", edit("parameters", None), "has nothing for image/constants/"),
  ],
)
def test_a_damaged_adapter_is_refused_by_one_clear_error(adapter, tmp_path, name, damage, message):
  adapter.save(tmp_path)
  (path,) = tmp_path.glob(name)
  damage(path)
  with pytest.raises(ValueError, match=message):
    qat_jax.load(tmp_path)


def test_a_kill_while_saving_leaves_the_old_adapter_or_the_new_one(adapter, features, tmp_path, head):
  old = Adapter(WIDTH, {"text": head("static", maps_gallery=False)}, {"name": "old"})
  adapter.save(tmp_path / "new")
  code = """
import os, sys, pathlib
import qat_jax
countdown = int(sys.argv[3])
def dying(real):
  def call(*arguments, **options):
    global countdown
    countdown -= 1
    if countdown < 0:
      os._exit(9)
    return real(*arguments, **options)
  return call
adapter = qat_jax.load(sys.argv[1])
os.replace, os.fsync, pathlib.Path.unlink = dying(os.replace), dying(os.fsync), dying(pathlib.Path.unlink)
adapter.save(sys.argv[2])
"""
  seen = []
  for moment in (1, 4, 6, 99):  # before: the parameters' rename, adapter.json's, the old parameters' removal
    old.save(tmp_path / "a")
    command = [sys.executable, "-c", code, tmp_path / "new", tmp_path / "a", str(moment)]
    assert subprocess.run(command).returncode == (9 if moment < 99 else 0)
    found = qat_jax.load(tmp_path / "a")
    expected = old if found.info == old.info else adapter
    chex.assert_trees_all_equal(found(features, "text"), expected(features, "text"))
    seen.append(expected is adapter)
  assert seen == sorted(seen) and not seen[0] and seen[-1] and seen[-2]
  assert sorted(path.suffix for path in (tmp_path / "a").iterdir()) == [".json", ".safetensors"]


def test_queries_gallery_and_adapter_are_of_one_encoder(features, tmp_path, head):
  adapter = Adapter(WIDTH, {"text": head("plain")}, {"encoder": "clip", "revision": "1"})
  rows_ND = features / np.linalg.norm(features, axis=1, keepdims=True)
  stores = {
    name: write_features(tmp_path / name, {kind: rows_ND}, {"id": list("abcde")}, {"encoder": encoder, "revision": "1"})
    for name, kind, encoder in (("own", "text", "clip"), ("own_items", "img", "clip"))
  }
  others = {
    name: write_features(
      tmp_path / name, {kind: rows_ND}, {"id": list("abcde")}, {"encoder": "siglip", "revision": "7"}
    )
    for name, kind in (("other", "text"), ("other_items", "img"))
  }
  adaptation = adapter(stores["own"])
  assert adaptation.encoder == adapter(features).encoder == ("clip", "1")
  qat_jax.rank(adaptation, adapter.prepare(stores["own_items"]), k=2)
  qat_jax.rank(adaptation, rows_ND, k=2)  # an array is of nobody knows what
  shortlist = np.zeros((5, 1), np.int32)
  for refused in (
    lambda: adapter(others["other"]),
    lambda: adapter.prepare(others["other_items"]),
    lambda: qat_jax.rank(adaptation, others["other_items"], k=2),
    lambda: qat_jax.rerank(adaptation, others["other_items"], shortlist, k=1),
  ):
    with pytest.raises(ValueError, match="of the encoder .*(clip@1.*siglip@7|siglip@7.*clip@1)"):
      refused()
  unknown = Adapter(WIDTH, adapter.heads, {"encoder": "in the words of a released checkpoint"})
  assert unknown.encoder is None
  qat_jax.rank(unknown(others["other"]), unknown.prepare(others["other_items"]), k=2)
  with pytest.raises(ValueError, match="the adaptation is of the encoder siglip@7, the gallery .*own_items of clip@1"):
    qat_jax.rank(unknown(others["other"]), stores["own_items"], k=2)


def test_a_second_writer_of_an_adapter_is_told_who_is_inside(adapter, tmp_path):
  with lock(tmp_path), pytest.raises(BlockingIOError, match=r"is in use by process \d+ on"):
    adapter.save(tmp_path)
  adapter.save(tmp_path)
