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


def csv(*rows, head="query_id,item_id"):
  return "".join(f"{row}\n" for row in (head, *rows))


PAIRS = {"query_id": ["1", "1"], "item_id": ["item7", "item9"]}
MARKS = {
  "right.csv": [
    csv("1,item7", "1,item9"),
    "\ufeff" + csv("1,item7", "", "1,item9", ""),
    csv("1;item7;x", "1;item9;y", head="Query_ID;Item_ID;note"),
    "sep=;\r\n" + csv("1;item7", "1;item9", head="query_id;item_id").replace("\n", "\r\n"),
    csv('"1", item7', '"1",item9', head="query_id, item_id"),
    csv("1.0,item7", "1.0,item9"),
    csv("1,item7", "1,item9", "1,item7"),
    csv("1,item7,1", "1,item9,True", head="query_id,item_id,right"),
  ],
  "right.tsv": [csv("1\titem7", "1\titem9", head="query_id\titem_id")],
  "right.jsonl": ['{"query_id": 1, "item_id": "item7"}\n\n{"query_id": 1.0, "item_id": "item9", "more": [1]}\n'],
  "right.parquet": [
    pa.table({**PAIRS, "query_id": [1, 1]}),
    pa.table({**PAIRS, "query_id": [1.0, 1.0]}),
    pa.table({" Query_ID": PAIRS["query_id"], "item_id": pa.array(PAIRS["item_id"]).dictionary_encode()}),
    pa.table({name: values + values for name, values in PAIRS.items()}),
  ],
  "right.npy": [np.array([[-1, -1, -1], [7, 9, 7]])],
}


def written(path, content):
  if isinstance(content, pa.Table):
    pq.write_table(content, path)
  elif isinstance(content, np.ndarray):
    np.save(path, content)
  else:
    path.write_bytes(content.encode())
  return f"--right={path}"


@pytest.mark.parametrize("name", MARKS)
def test_marks_may_lie_in_any_table(folder, name):
  expected = rank(folder, f"--adapter={folder / 'adapter'}", f"--right={folder / 'right.parquet'}")
  for content in MARKS[name]:
    got = rank(folder, f"--adapter={folder / 'adapter'}", written(folder / name, content))
    np.testing.assert_array_equal(got, expected, err_msg=str(content))


@pytest.mark.parametrize("sign", ["right,0", "sign,-1", "label,false", "relevance,0.0", "positive,False"])
def test_what_was_marked_as_wrong_is_not_found_and_teaches_nothing(folder, sign):
  column, wrong = sign.split(",")
  text = csv("1,item7,1", "1,item9,1", f"1,item8,{wrong}", f"0,item0,{wrong}", head=f"query_id,item_id,{column}")
  names, _ = rank(folder, f"--adapter={folder / 'adapter'}", written(folder / "some.csv", text))
  adapter, gallery = qat_jax.load(folder / "adapter"), FeatureStore.open(folder / "gallery")
  query = adapter(np.load(folder / "queries.npy"), "image")
  expected = qat_jax.rank(
    adapter.refine(query, [gallery[:0], gallery[np.array([7, 9])]]),
    gallery,
    5,
    exclude=np.array([[0, -1, -1], [7, 8, 9]]),
  )
  assert names.tolist() == [[f"item{i}" for i in row] for row in expected.ids]


@pytest.mark.parametrize(
  ("name", "content", "message"),
  [
    ("a.csv", csv("1,item7", "1,itme9"), "a.csv: item_id 'itme9' is not among the 120 there are .1 such rows"),
    ("a.csv", csv("1,item7", "007,item9"), "a.csv: query_id '007' is not among the 2 there are"),
    ("a.csv", csv("1,item7", "1,"), "a.csv: row 2 has no item_id .1 such rows"),
    ("a.csv", csv("1,item7", head="query,item"), r"columns \['query', 'item'\]; \['item_id', 'query_id'\] is missing"),
    ("a.csv", csv('1,"item7', "1,item9"), "a.csv, line 2: .*a quote there stays open"),
    ("a.csv", csv("1,item7,maybe", head="query_id,item_id,right"), "a.csv, row 1: right is 'maybe'; wanted true"),
    ("a.csv", csv("1,item7,nan", head="query_id,item_id,right"), "a.csv, row 1: right is 'nan'; wanted true"),
    (
      "a.csv",
      csv("1,item9,0", "1,item7,7", head="query_id,item_id,label"),
      "a.csv, row 2: label is '7'; wanted true or false, 1, 0 or -1",
    ),
    ("a.csv", csv("1,item7,1", "1,item7,0", head="query_id,item_id,right"), "query 1 marks item item7 as right and as"),
    ("a.jsonl", '{"query_id": "1", "item_id": ["item7"]}\n', "has a list where a name is wanted"),
    ("a.parquet", pa.table({"query_id": [1.0, None], "item_id": PAIRS["item_id"]}), "row 2 has no query_id"),
  ],
)
def test_marks_that_are_not_understood_are_named(folder, name, content, message):
  with pytest.raises(SystemExit, match=message):
    rank(folder, f"--adapter={folder / 'adapter'}", written(folder / name, content))


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
