import json
import os
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
from qat_jax.features.writer import FeatureWriter
from qat_jax.models import forms as hypernetwork
from qat_jax.types import as_gallery

WIDTH = 8


def head(form: str, **settings) -> Head:
  module = hypernetwork.FORMS[form](WIDTH, **settings)
  variables = hypernetwork.initialise(module, jax.random.key(0))
  variables["params"] = jax.tree.map(
    lambda x: x + 0.1 * jax.random.normal(jax.random.key(3), x.shape), variables["params"]
  )
  return Head(form, settings, variables)


@pytest.fixture(scope="module")
def adapter():
  text = head("adaptive", hidden=8, rank=2, token_hidden=8)
  return Adapter(WIDTH, {"text": text, "image": head("static", maps_gallery=True)}, {"trained": "here"})


@pytest.fixture
def features():
  return np.random.default_rng(0).normal(size=(5, WIDTH)).astype(np.float32)


@pytest.mark.parametrize("query_type", ["text", "image"])
def test_a_saved_adapter_is_the_same_adapter(adapter, features, query_type, tmp_path):
  adapter.save(tmp_path / "adapter")
  again = qat_jax.load(tmp_path)  # a run's folder
  chex.assert_trees_all_equal(again(features, query_type), adapter(features, query_type))
  assert again.info == {"trained": "here"}
  assert again.heads[query_type].space == adapter.heads[query_type].space


def test_saving_again_replaces_the_adapter(adapter, features, tmp_path):
  Adapter(WIDTH, {"text": head("plain")}).save(tmp_path / "a")
  adapter.save(tmp_path / "a")
  assert set(qat_jax.load(tmp_path / "a").heads) == {"text", "image"}
  assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_any_number_of_queries_gives_the_same_rows_without_compiling_for_each(adapter):
  query_QD = np.random.default_rng(1).normal(size=(9, WIDTH)).astype(np.float32)
  whole = adapter(query_QD, "text")
  compiled = adapter._calls["text"]._cache_size()
  for count in (5, 6, 7, 8):
    chex.assert_trees_all_close(adapter(query_QD[:count], "text"), whole[:count], atol=1e-6)
  assert adapter._calls["text"]._cache_size() <= compiled + 1


def test_a_query_type_must_be_named_where_heads_differ(adapter, features):
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
  ],
)
def test_bad_queries_are_refused_with_what_was_got_and_wanted(adapter, query_QD, message):
  with pytest.raises(ValueError, match=message):
    adapter(query_QD, "text")


def test_a_prepared_store_remembers_who_prepared_it(adapter, features, tmp_path):
  columns = {"id": list("abcde"), "instance": list("aabbc")}
  unit = features / np.linalg.norm(features, axis=1, keepdims=True)
  frozen = write_features(tmp_path / "frozen", {"img": unit.astype(np.float16)}, columns)
  assert adapter.prepare(frozen, "text") is frozen
  with pytest.raises(ValueError, match="folder="):
    adapter.prepare(frozen, "image")
  mapped = adapter.prepare(frozen, "image", tmp_path / "mapped")
  assert mapped.space == adapter(features, "image").space != "frozen"
  np.testing.assert_allclose(mapped[:], adapter.prepare(frozen[:], "image"), atol=1e-3)
  assert mapped.ids.tolist() == list("abcde")
  assert adapter.prepare(mapped, "image") is mapped
  with pytest.raises(ValueError, match="another adapter"):
    Adapter(WIDTH, {"image": head("static", maps_gallery=False)}).prepare(mapped)


def test_a_store_that_is_not_normalised_is_written_anew(adapter, features, tmp_path):
  long = write_features(tmp_path / "long", {"img": 3 * features}, {"id": list("abcde")})
  with pytest.raises(ValueError, match=r"not of unit length.*folder="):
    adapter.prepare(long, "text")
  unit = adapter.prepare(long, "text", tmp_path / "unit")
  np.testing.assert_allclose(np.linalg.norm(unit[:], axis=1), 1, atol=1e-5)


def test_preparing_again_opens_what_was_made_and_other_inputs_make_it_anew(adapter, features, tmp_path, caplog):
  def stored(name, rows_ND):
    return write_features(tmp_path / name, {"img": rows_ND}, {"id": [str(i) for i in range(len(rows_ND))]})

  frozen = stored("frozen", features)
  first = adapter.prepare(frozen, "image", tmp_path / "mapped")
  written, first_ND = first.shards[0].path.stat().st_mtime_ns, first[:]
  again = adapter.prepare(frozen, "image", tmp_path / "mapped")
  assert again.shards[0].path.stat().st_mtime_ns == written and not caplog.messages
  assert again.fingerprint == first.fingerprint
  moved = adapter.prepare(stored("copy", features), "image", tmp_path / "mapped")
  assert moved.shards[0].path.stat().st_mtime_ns == written

  other = adapter.prepare(stored("other", features[::-1]), "image", tmp_path / "mapped")
  np.testing.assert_array_equal(other[:], first_ND[::-1])
  with pytest.raises(OSError, match="was changed while it was open"):
    first[:]
  assert len(caplog.messages) == 1 and "mapped is made anew: gallery.features was" in caplog.messages[0]
  unit = adapter.prepare(stored("long", 3 * features), "text", tmp_path / "mapped")
  assert unit.space == "frozen" and "space was 'mapped-" in caplog.messages[1]
  assert sorted(path.name for path in (tmp_path / "mapped").iterdir()) == ["img_emb", "meta.json", "metadata"]

  with pytest.raises(FileExistsError, match=r"copy holds .*already"):
    adapter.prepare(frozen, "image", tmp_path / "copy")
  np.testing.assert_array_equal(FeatureStore.open(tmp_path / "copy")[:], features)


@pytest.mark.parametrize("moment", ["img_emb_0000.npy", "meta.json"])
def test_a_kill_while_preparing_anew_leaves_a_folder_that_is_made_again(
  adapter, features, tmp_path, monkeypatch, moment
):
  frozen = write_features(tmp_path / "a", {"img": features}, {"id": list("abcde")})
  other = write_features(tmp_path / "b", {"img": features[::-1]}, {"id": list("abcde")})
  adapter.prepare(frozen, "image", tmp_path / "mapped")

  def die(temporary, path, real=os.replace):
    if path.name == moment:
      raise KeyboardInterrupt
    real(temporary, path)

  with monkeypatch.context() as patch:
    patch.setattr("os.replace", die)
    with pytest.raises(KeyboardInterrupt):
      adapter.prepare(other, "image", tmp_path / "mapped")
  with pytest.raises(ValueError, match="not finished"):
    FeatureStore.open(tmp_path / "mapped")
  again = adapter.prepare(other, "image", tmp_path / "mapped")
  np.testing.assert_array_equal(again[:], adapter.prepare(frozen, "image", tmp_path / "c")[::-1])


def with_parts() -> Head:
  """Returns a head with a memory, captions of its items, and levels."""
  rng = np.random.default_rng(8)
  rows = lambda *shape: rng.normal(size=shape).astype(np.float16)
  numbers = {name: np.float32(0.5) for name in ("temperature", "scale", "weight", "share", "item_temperature")}
  memory = {"queries": rows(6, WIDTH), "images": rows(6, WIDTH), "mean": np.zeros(WIDTH, np.float32), **numbers}
  settings = {"form": "plain", "settings": {}, "pairs": 6, "captions": "text"}
  levels = {"folded": rows(4, 2 * WIDTH), "weight": np.float32(0.5), "centre": np.float32(0.1)}
  settings = {"form": "remembering", "settings": settings, "queries": 4, "items": 2 * WIDTH, "nearest": 2}
  return Head("levelled", settings, {"params": {}, "constants": {"head": memory, **levels}})


def test_a_wider_gallery_says_so_and_is_refused_elsewhere(features, tmp_path):
  adapter = Adapter(WIDTH, {"text": with_parts()})
  frozen = write_features(tmp_path / "frozen", {"img": features}, {"id": list("abcde")})
  prepared = adapter.prepare(frozen, folder=tmp_path / "prepared")
  assert (prepared.width, prepared.space) == (2 * WIDTH + 2, adapter.head().space)
  np.testing.assert_allclose(prepared[:], adapter.prepare(features), atol=1e-6)
  assert adapter.prepare(prepared) is prepared
  ranking = qat_jax.rank(adapter(features[:2]), prepared, 5)
  np.testing.assert_allclose(
    ranking.scores, np.sort(qat_jax.score(adapter(features[:2]), prepared[:]))[:, ::-1], atol=1e-6
  )
  with pytest.raises(ValueError, match="was prepared by another adapter"):
    Adapter(WIDTH, {"text": head("plain")}).prepare(prepared)
  with pytest.raises(ValueError, match="8 wide"):
    qat_jax.rank(adapter(features[:2]), frozen)
  adapter.save(tmp_path / "adapter")
  again = qat_jax.load(tmp_path / "adapter")
  assert again.head().space == prepared.space
  assert again.prepare(prepared) is prepared
  chex.assert_trees_all_equal(again(features), adapter(features))


def test_a_killed_preparation_goes_on_where_it_stopped(features, tmp_path, monkeypatch):
  monkeypatch.setattr("qat_jax.features.store.ROWS_PER_SHARD", 2)
  adapter = Adapter(WIDTH, {"text": with_parts()})
  frozen = write_features(tmp_path / "frozen", {"img": features}, {"id": list("abcde")}, rows_per_shard=2)
  whole = adapter.prepare(frozen, folder=tmp_path / "whole")
  calls, write = [], FeatureWriter.write

  def killed_at_the_second(writer, shard, *parts):
    calls.append(shard)
    if len(calls) == 2:
      raise KeyboardInterrupt
    write(writer, shard, *parts)

  monkeypatch.setattr(FeatureWriter, "write", killed_at_the_second)
  with pytest.raises(KeyboardInterrupt):
    adapter.prepare(frozen, folder=tmp_path / "killed")
  resumed = adapter.prepare(frozen, folder=tmp_path / "killed")
  assert calls == [0, 1, 1, 2]
  files = lambda folder: {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
  assert files(resumed.folder) == files(whole.folder)
  calls.clear()
  with pytest.raises(KeyboardInterrupt):
    adapter.prepare(frozen, folder=tmp_path / "other")
  longer = write_features(tmp_path / "longer", {"img": features[::-1]}, {"id": list("abcde")})
  np.testing.assert_allclose(adapter.prepare(longer, folder=tmp_path / "other")[:], whole[:][::-1], atol=1e-6)


def test_anything_with_rows_can_be_prepared(adapter, features, tmp_path):
  unit_ND = features / np.linalg.norm(features, axis=1, keepdims=True)

  class Rows:
    width, dtype, space, ids = WIDTH, np.dtype(np.float32), "frozen", np.array(list("abcde"), object)

    def __len__(self):
      return len(unit_ND)

    def __getitem__(self, rows):
      return unit_ND[rows]

  rows = Rows()
  assert adapter.prepare(rows, "text") is rows
  for _ in range(2):  # it has no fingerprint, so it is written again
    mapped = adapter.prepare(rows, "image", tmp_path / "mapped")
    np.testing.assert_array_equal(mapped[:], adapter.prepare(unit_ND, "image"))
  assert mapped.ids.tolist() == list("abcde")
  wrapped = adapter.prepare(as_gallery(unit_ND), "image")
  assert wrapped.space == adapter.heads["image"].space
  assert adapter.prepare(wrapped, "image") is wrapped
  with pytest.raises(TypeError, match="the gallery is a list"):
    adapter.prepare(unit_ND.tolist(), "text")
  with pytest.raises(ValueError, match="5 items is 7 wide; this adapter wants 8"):
    adapter.prepare(unit_ND[:, 1:], "text")


def test_a_folder_without_an_adapter_is_named(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"no adapter in .*train\.main"):
    qat_jax.load(tmp_path)


def test_parameters_of_another_shape_are_refused(adapter, tmp_path):
  adapter.save(tmp_path / "a")
  about = json.loads((tmp_path / "a" / "adapter.json").read_text())
  about["heads"]["text"]["settings"]["hidden"] = 9
  (tmp_path / "a" / "adapter.json").write_text(json.dumps(about))
  with pytest.raises(ValueError, match=r"text/params/.*another model's"):
    qat_jax.load(tmp_path / "a")


def test_saving_leaves_the_other_files_of_the_folder(tmp_path):
  (tmp_path / "run").mkdir()
  (tmp_path / "run/metrics.jsonl").write_text("{}\n")
  for _ in range(2):
    adapter = Adapter(4, {"text": Head("plain", {}, {"params": {}, "constants": {}})})
    adapter.save(tmp_path / "run")
  assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["adapter.json", "metrics.jsonl"]


def test_equal_heads_are_written_once(tmp_path):
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


def edit(name, value):
  return lambda path: path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))


@pytest.mark.parametrize(
  ("name", "damage", "message"),
  [
    ("params-*.safetensors", truncate, "params-.*safetensors are missing or damaged .*checksum.*save or fetch"),
    ("params-*.safetensors", garble, "are missing or damaged"),
    ("params-*.safetensors", pathlib.Path.unlink, "are missing or damaged"),
    ("adapter.json", truncate, "adapter.json describes no adapter"),
    ("adapter.json", lambda path: path.write_text("[]"), "adapter.json describes no adapter"),
    ("adapter.json", lambda path: path.write_text("{}"), "describes no adapter: it has no entry 'format'"),
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


def test_a_kill_while_saving_leaves_the_old_adapter_or_the_new_one(adapter, features, tmp_path):
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


def test_queries_gallery_and_adapter_are_of_one_encoder(features, tmp_path):
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
