import os

import chex
import numpy as np
import pytest

import qat_jax
from qat_jax.adapter import Adapter, Head
from qat_jax.features.store import FeatureStore, write_features
from qat_jax.features.writer import FeatureWriter
from qat_jax.types import as_gallery

WIDTH = 8


def test_a_prepared_store_remembers_who_prepared_it(adapter, features, tmp_path, head):
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


def with_parts(narrow: int = 0) -> Head:
  """Returns a head with a memory, captions of its items, projected to be `narrow` wide, and levels."""
  rng = np.random.default_rng(8)
  rows = lambda *shape: rng.normal(size=shape).astype(np.float16)
  numbers = {name: np.float32(0.5) for name in ("temperature", "scale", "weight", "share", "item_temperature")}
  memory = {"queries": rows(6, WIDTH), "images": rows(6, WIDTH), "mean": np.zeros(WIDTH, np.float32), **numbers}
  settings = {"form": "plain", "settings": {}, "pairs": 6, "captions": "text"}
  form, items = "remembering", narrow or 2 * WIDTH
  if narrow:
    along = np.linalg.qr(rng.normal(size=(2 * WIDTH, 2 * WIDTH)))[0][:narrow].astype(np.float32)
    settings = {"form": form, "settings": settings, "items": 2 * WIDTH, "narrow": narrow}
    form, memory = "projected", {"head": memory, "directions": along}
  levels = {"folded": rows(4, items), "weight": np.float32(0.5), "centre": np.float32(0.1)}
  settings = {"form": form, "settings": settings, "queries": 4, "items": items, "nearest": 2}
  return Head("levelled", settings, {"params": {}, "constants": {"head": memory, **levels}})


@pytest.mark.parametrize("narrow", [0, WIDTH + 3])
def test_a_wider_gallery_says_so_and_is_refused_elsewhere(features, tmp_path, head, narrow):
  adapter = Adapter(WIDTH, {"text": with_parts(narrow)})
  frozen = write_features(tmp_path / "frozen", {"img": features}, {"id": list("abcde")})
  prepared = adapter.prepare(frozen, folder=tmp_path / "prepared")
  assert (prepared.width, prepared.space) == ((narrow or 2 * WIDTH) + 2, adapter.head().space)
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


@pytest.mark.parametrize("narrow", [0, WIDTH + 3])
def test_a_killed_preparation_goes_on_where_it_stopped(features, tmp_path, monkeypatch, narrow):
  monkeypatch.setattr("qat_jax.features.prepared.ROWS_PER_SHARD", 2)
  adapter = Adapter(WIDTH, {"text": with_parts(narrow)})
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
