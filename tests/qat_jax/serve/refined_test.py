import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import qat_jax
from qat_jax import cli
from qat_jax.adapter import Adapter, Head
from qat_jax.features.store import FeatureStore, write_features

BOOK = '{"colour": ["a red shape", "a blue shape", "a green shape"], "kind": ["a circle", "a square", "a star"]}'


@pytest.fixture
def folder(tmp_path):
  """A gallery and two queries of the toy encoder's width, an adapter that changes nothing, aspects and marks."""
  rng = np.random.default_rng(0)
  row_ND = rng.standard_normal((120, 128)).astype(np.float32)
  row_ND /= np.linalg.norm(row_ND, axis=1, keepdims=True)
  write_features(tmp_path / "gallery", {"img": row_ND}, {"id": [f"item{i}" for i in range(120)]})
  np.save(tmp_path / "queries.npy", row_ND[:2])
  Adapter(128, {"image": Head("plain", {}, {})}).save(tmp_path / "adapter")
  (tmp_path / "book.json").write_text(BOOK)
  pq.write_table(pa.table({"query_id": ["1", "1"], "item_id": ["item7", "item9"]}), tmp_path / "right.parquet")
  return tmp_path


def rank(folder, *flags):
  places = [f"--gallery={folder / 'gallery'}", f"--queries={folder / 'queries.npy'}", f"--out={folder / 'out.parquet'}"]
  cli.main(["rank", *places, "--query-type=image", "--k=5", *flags])
  table = pq.read_table(folder / "out.parquet").to_pydict()
  return np.reshape(table["item_id"], (2, 5)), np.reshape(table["score"], (2, 5))


def test_queries_told_in_words_need_no_adapter(folder):
  names, scores = rank(
    folder, "--ignore=kind", "--alike=colour", f"--aspects={folder / 'book.json'}", "--encoder=toy_clip"
  )
  gallery, query_QD = FeatureStore.open(folder / "gallery"), np.load(folder / "queries.npy")
  told = qat_jax.by_words(
    query_QD,
    alike="colour",
    ignore="kind",
    aspects=folder / "book.json",
    encoder=qat_jax.load_encoder("toy_clip"),
    gallery=gallery,
  )
  expected = qat_jax.rank(told, gallery, 5)
  assert [[f"item{i}" for i in row] for row in expected.ids] == names.tolist()
  np.testing.assert_allclose(scores, expected.scores, atol=1e-6)


def test_marks_refine_their_query_alone_and_are_not_found_again(folder):
  adapter, gallery, query_QD = (
    qat_jax.load(folder / "adapter"),
    FeatureStore.open(folder / "gallery"),
    np.load(folder / "queries.npy"),
  )
  names, _ = rank(folder, f"--adapter={folder / 'adapter'}", f"--right={folder / 'right.parquet'}")
  before = qat_jax.rank(adapter(query_QD[:1], "image"), gallery, 5)
  assert names[0].tolist() == [f"item{i}" for i in before.ids[0]]
  refined = adapter.refine(adapter(query_QD[1:], "image"), gallery[np.array([7, 9])])
  after = qat_jax.rank(refined, gallery, 5, exclude=np.array([[7, 9]]))
  assert names[1].tolist() == [f"item{i}" for i in after.ids[0]]


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--encoder=toy_clip"], "--aspects and --encoder go with"),
    ([], "--adapter is missing"),
    (["--ignore=kind"], "does not say its encoder"),
    (["--ignore=kind", "--shortlist=s.npy"], "--shortlist and --cluster do not go with words"),
    (["--ignore=smell", "--encoder=toy_clip"], "there is no aspect 'smell'"),
  ],
)
def test_flags_that_do_not_fit_are_refused_in_one_line(folder, flags, message):
  with pytest.raises(SystemExit, match=message):
    rank(folder, *flags)
