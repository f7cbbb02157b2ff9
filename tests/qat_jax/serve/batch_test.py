import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import qat_jax
from qat_jax.adapter import Adapter, Head
from qat_jax.features.store import FeatureStore, write_features
from qat_jax.planted import Planted
from qat_jax.serve import batch as reranking
from qat_jax.stages import lock, write_whole


@pytest.fixture
def files(tmp_path):
  """An adapter that changes nothing, 40 items, 10 queries that are noisy copies of items."""
  rng = np.random.default_rng(0)
  gallery_ND = rng.standard_normal((40, 8)).astype(np.float32)
  gallery_ND /= np.linalg.norm(gallery_ND, axis=1, keepdims=True)
  write_features(tmp_path / "gallery", {"img": gallery_ND}, {"id": [f"item{i}" for i in range(40)]})
  query_QD = gallery_ND[:10] + 0.01 * rng.standard_normal((10, 8)).astype(np.float32)
  np.save(tmp_path / "queries.npy", query_QD)
  Adapter(8, {"text": Head("plain", {}, {})}).save(tmp_path / "adapter")
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


def test_groups_are_written_by_their_best_item_with_its_box(files, tmp_path):
  store = FeatureStore.open(files["gallery"])
  columns = {
    "id": store.ids,
    "picture": [f"picture{i // 4}" for i in range(40)],
    "box_left": np.arange(40) / 40,
    "second": np.arange(40) / 8,
  }
  files["gallery"] = write_features(tmp_path / "crops", {"img": store[:]}, columns).folder
  table = pq.read_table(reranking.rerank_files(**files, k=3, block=4, group="picture")).to_pydict()
  assert table["item_id"][::3] == [f"item{i}" for i in range(10)]
  assert table["picture"][::3] == [f"picture{i // 4}" for i in range(10)]
  assert table["box_left"][::3] == [i / 40 for i in range(10)]
  assert table["second"][::3] == [i / 8 for i in range(10)]
  assert all(len(set(table["picture"][i : i + 3])) == 3 for i in range(0, 30, 3))
  for wrong, error, words in (
    ({"group": "page"}, KeyError, "no metadata column 'page'"),
    ({"group": "picture", "shortlist": "x.npy"}, ValueError, "leave the shortlist out"),
  ):
    with pytest.raises(error, match=words):
      reranking.rerank_files(**files | {"out": tmp_path / "other.parquet"} | wrong)


def test_near_duplicates_are_written_once_and_items_differ(files, tmp_path):
  store = FeatureStore.open(files["gallery"])
  twice_ND = np.concatenate([store[:], store[:10]])
  columns = {"id": [*store.ids, *(f"copy{i}" for i in range(10))]}
  files["gallery"] = write_features(tmp_path / "copies", {"img": twice_ND}, columns).folder
  write = lambda out, **more: pq.read_table(reranking.rerank_files(**files | {"out": tmp_path / out}, k=5, **more))
  before, once = write("before.parquet"), write("once.parquet", group="duplicates")
  assert "alike" not in before.column_names
  alike = dict(zip(*(once.column(name).to_pylist() for name in ("item_id", "alike")), strict=True))
  assert {name for name in alike if name.startswith("copy")} == set()
  assert all(count == 1 + (int(name[4:]) < 10) for name, count in alike.items())
  assert write("most.parquet", diversity=1.0).column("item_id") != before.column("item_id")
  with pytest.raises(ValueError, match="diversity is 2.0; give a number from 0 to 1"):
    write("wrong.parquet", diversity=2.0)


def test_evidence_is_written_and_false_alarms_are_left_out(files, tmp_path):
  rng = np.random.default_rng(1)
  things_ND = rng.standard_normal((100, 8))
  half = lambda noise: (things_ND + noise * rng.standard_normal((100, 8))).astype(np.float16)
  planted = Planted(half(0.05), half(0.05), np.arange(100, dtype=np.int32))
  Adapter(8, {"text": Head("plain", {}, {})}, planted={"text": planted}).save(files["adapter"])
  strangers = rng.standard_normal((30, 8)).astype(np.float32)
  np.save(files["queries"], np.concatenate([np.load(files["queries"]), strangers]))
  whole = pq.read_table(reranking.rerank_files(**files, k=3, evidence=True)).to_pydict()
  first = np.array(whole["evidence"][::3])
  assert first[:10].min() > 0.9 > 0.5 > np.median(first[10:])
  few = files | {"out": tmp_path / "few.parquet"}
  table = pq.read_table(reranking.rerank_files(**few, k=3, alarms=0.1)).to_pydict()
  assert {str(i) for i in range(10)} <= set(table["query_id"])
  assert len(set(table["query_id"])) <= 10 + 6  # a tenth of 30, or a few more
  Adapter(8, {"text": Head("plain", {}, {})}).save(files["adapter"])
  bare = files | {"out": tmp_path / "bare.parquet"}
  assert pq.read_table(reranking.rerank_files(**bare, k=3, evidence=True))["evidence"].null_count == 120
  with pytest.raises(ValueError, match="is not calibrated; leave alarms out"):
    reranking.rerank_files(**files | {"out": tmp_path / "none.parquet"}, alarms=0.1)


def test_a_killed_run_goes_on_where_it_was(files, monkeypatch):
  calls = []
  real = reranking.rank

  def dies_at_the_third(adaptation, *rest, **options):
    calls.append(len(adaptation))
    if len(calls) == 3:
      raise KeyboardInterrupt
    return real(adaptation, *rest, **options)

  monkeypatch.setattr(reranking, "rank", dies_at_the_third)
  with pytest.raises(KeyboardInterrupt):
    reranking.rerank_files(**files, k=3, block=3)
  assert not files["out"].exists()
  with pytest.raises(ValueError, match=r"parts was made with other inputs or settings: k was 3, is 4\. Delete it"):
    reranking.rerank_files(**files, k=4, block=3)
  gallery = FeatureStore.open(files["gallery"])
  gallery_ND = gallery[:]
  gallery_ND[7] = -gallery_ND[7]
  np.save(gallery.shards[0].path, gallery_ND)  # in place: same size, meta.json untouched
  with pytest.raises(ValueError, match=r"img_emb_0000.npy is not what was written"):
    reranking.rerank_files(**files, k=3, block=3)
  meta = (gallery.folder / "meta.json").rename(gallery.folder / "away")
  with pytest.raises(ValueError, match="gallery.features was"):
    reranking.rerank_files(**files, k=3, block=3)
  meta.rename(gallery.folder / "meta.json")
  gallery_ND[7] = -gallery_ND[7]
  np.save(gallery.shards[0].path, gallery_ND)
  block = sorted(files["out"].with_name(files["out"].name + ".parts").glob("block_*"))[1]
  data = bytearray(block.read_bytes())
  data[len(data) // 2] ^= 1
  block.write_bytes(data)  # it is made anew
  reranking.rerank_files(**files, k=3, block=3)
  assert calls == [3, 3, 3, 3, 3, 1]
  resumed = pq.read_table(files["out"])
  assert resumed == pq.read_table(reranking.rerank_files(**files, k=3, block=3))


def test_inputs_that_do_not_fit_are_refused(files, tmp_path):
  np.save(tmp_path / "narrow.npy", np.ones((2, 4), np.float32))
  with pytest.raises(ValueError, match=r"narrow.npy are 4 wide, .*gallery 8; the adapter .*adapter wants 8"):
    reranking.rerank_files(**{**files, "queries": tmp_path / "narrow.npy"})
  with pytest.raises(FileNotFoundError, match="no queries at"):
    reranking.rerank_files(**{**files, "queries": tmp_path / "nothing.npy"})
  pq.write_table(pa.table({"query_id": ["0"], "item_id": ["itme1"]}), tmp_path / "shortlist.parquet")
  with pytest.raises(ValueError, match="item_id 'itme1' is not among the 40"):
    reranking.rerank_files(**files, shortlist=tmp_path / "shortlist.parquet")
  pq.write_table(pa.table({"query": ["0"]}), tmp_path / "shortlist.parquet")
  with pytest.raises(ValueError, match="'item_id', 'query_id'. is missing"):
    reranking.rerank_files(**files, shortlist=tmp_path / "shortlist.parquet")


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    ({"k": 0}, "k is 0; it must be"),
    ({"k": 2.5}, "k is 2.5; it must be a whole number"),
    ({"block": 0}, "block is 0; it must be"),
    ({"out": "x.csv"}, "the output is x.csv; rankings are written as Parquet: call it x.parquet"),
    ({"query_type": "image"}, "query_type is 'image', but this adapter has heads for"),
    ({"queries": "text.npy"}, "text.npy is no .npy file: it begins with b"),
    ({"shortlist": "text.npy"}, "text.npy is no .npy file: it begins with b"),
    ({"shortlist": "floats.npy"}, "shortlist .*floats.npy holds float32 of shape .*wanted positions"),
    ({"shortlist": "far.npy"}, "positions 0 to 40; the gallery has 40 items"),
  ],
)
def test_nothing_is_written_before_everything_is_checked(files, tmp_path, flags, message):
  (tmp_path / "text.npy").write_text("0.1 0.2")
  np.save(tmp_path / "floats.npy", np.ones((10, 8), np.float32))
  np.save(tmp_path / "far.npy", np.array([[40, 0]] * 10, np.uint64))
  before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
  paths = {
    name: tmp_path / value if name in ("queries", "shortlist", "out") else value for name, value in flags.items()
  }
  with pytest.raises(ValueError, match=message):
    reranking.rerank_files(**files | flags | paths)
  assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize("dtype", [np.uint8, np.uint64, np.int8, np.int64])
def test_a_shortlist_of_any_whole_numbers_gives_the_same(files, tmp_path, dtype):
  position_QS = np.random.default_rng(1).integers(0, 40, (10, 30))
  position_QS[:, 1] = position_QS[:, 0]  # twice, so once
  np.save(tmp_path / "shortlist.npy", position_QS.astype(dtype))
  table = pq.read_table(reranking.rerank_files(**files, shortlist=tmp_path / "shortlist.npy", k=30)).to_pydict()
  for query in range(10):
    found = [name for q, name in zip(table["query_id"], table["item_id"], strict=True) if q == str(query)]
    assert sorted(found) == sorted({f"item{i}" for i in position_QS[query]})


@pytest.fixture
def two_heads(files):
  """The files, and an adapter whose image head turns every query around."""
  backwards = {
    "mean": np.zeros(8, np.float32),
    "map": -np.eye(8, dtype=np.float32),
    "residual": np.zeros((), np.float32),
  }
  image = Head("closed_form", {}, {"params": {}, "constants": backwards})
  Adapter(8, {"text": Head("plain", {}, {}), "image": image}).save(files["adapter"])
  return files


def first(path):
  table = pq.read_table(path).to_pydict()
  return [name for name, place in zip(table["item_id"], table["rank"], strict=True) if place == 1]


def test_the_head_is_that_of_the_queries_own_kind(two_heads, tmp_path):
  own = [f"item{i}" for i in range(10)]
  query_QD, ids = np.load(two_heads["queries"]), {"id": [str(i) for i in range(10)]}
  write_features(tmp_path / "texts", {"text": query_QD}, ids)
  write_features(tmp_path / "images", {"img": query_QD}, ids)
  write_features(tmp_path / "both", {"img": query_QD, "text": query_QD}, ids)
  assert first(reranking.rerank_files(**two_heads | {"queries": tmp_path / "texts"}, k=1)) == own
  assert first(reranking.rerank_files(**two_heads | {"queries": tmp_path / "images"}, k=1)) != own
  assert first(reranking.rerank_files(**two_heads | {"queries": tmp_path / "both"}, k=1, query_type="text")) == own
  for name, message in (("both", "features of text and image queries; say which"), ("queries.npy", "say which")):
    with pytest.raises(ValueError, match=message):
      reranking.rerank_files(**two_heads | {"queries": tmp_path / name}, k=1)
  Adapter(8, {"text": Head("plain", {}, {})}).save(two_heads["adapter"])
  with pytest.raises(ValueError, match="query_type is 'image', but this adapter has heads for"):
    reranking.rerank_files(**two_heads | {"queries": tmp_path / "images"}, k=1)
  assert first(reranking.rerank_files(**two_heads | {"queries": tmp_path / "both"}, k=1)) == own


def test_queries_and_gallery_of_different_encoders_are_refused(files, tmp_path):
  rows_ND, ids = np.eye(8, dtype=np.float32), {"id": list("abcdefgh")}
  for name, kind in (("q", "text"), ("g", "img")):
    write_features(tmp_path / name, {kind: rows_ND}, ids, meta={"encoder": f"clip-{name}", "revision": "1"})
  with pytest.raises(ValueError, match="g is of the encoder clip-g@1, .*q of clip-q@1; use one"):
    reranking.rerank_files(**files | {"queries": tmp_path / "q", "gallery": tmp_path / "g"})
  Adapter(8, qat_jax.load(files["adapter"]).heads, {"encoder": "clip-a", "revision": "1"}).save(files["adapter"])
  with pytest.raises(ValueError, match="the adapter is of the encoder clip-a@1, the gallery .*g of clip-g@1"):
    reranking.rerank_files(**files | {"gallery": tmp_path / "g"})
  assert not list(tmp_path.glob("out*"))


def test_an_output_inside_the_adapter_s_folder_can_be_resumed(files, monkeypatch):
  files = files | {"out": files["adapter"] / "out.parquet"}
  with monkeypatch.context() as patch:
    patch.setattr(
      reranking, "write_whole", lambda path, data: (path.stem == "out" and 1 / 0) or write_whole(path, data)
    )
    with pytest.raises(ZeroDivisionError):
      reranking.rerank_files(**files, k=1)
  assert first(reranking.rerank_files(**files, k=1)) == [f"item{i}" for i in range(10)]


def test_two_processes_do_not_write_the_same_output(files):
  with lock(files["out"].with_name("out.parquet.parts")), pytest.raises(BlockingIOError, match="in use by process"):
    reranking.rerank_files(**files, k=1)
