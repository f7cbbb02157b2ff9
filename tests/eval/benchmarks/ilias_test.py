"""ILIAS from look-alikes in its official formats, against the figures of its own program (tests/data)."""

import gzip
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from eval.benchmarks.ilias import Ilias, object_of, ranked_items
from eval.benchmarks.ilias_features import open_tasks
from eval.benchmarks.ilias_files import read_similarities
from qat_jax.types import Ranking
from tests.eval.tiny import put_hdf5

VECTORS = Path(__file__).parents[2] / "data" / "metric_vectors" / "ilias"
EXPECTED = json.loads((VECTORS / "expected.json").read_text())
WIDTH = 8


def assert_close(got, expected, name):
  if isinstance(expected, dict):
    assert set(got) == set(expected), name
    for key, value in expected.items():
      assert_close(got[key], value, f"{name}/{key}")
  else:
    assert got == pytest.approx(expected, abs=1e-9), name


@pytest.mark.parametrize("k", [5, 100, 1000])
def test_the_vectors_are_reproduced_with_all_breakdowns(k):
  figures = Ilias.open(VECTORS).score(read_similarities(VECTORS / "similarities.json"), k)
  for name, expected in EXPECTED[f"k={k}"].items():
    assert_close(figures[name], expected, name)


def test_image_and_text_queries_have_figures_of_their_own():
  figures = Ilias.open(VECTORS).score(read_similarities(VECTORS / "similarities.json"))
  assert figures["image_queries_map"] == pytest.approx(EXPECTED["image_queries_map_at_1000"], abs=1e-9)
  assert figures["text_queries_map"] == pytest.approx(EXPECTED["text_queries_map_at_1000"], abs=1e-9)
  assert figures["queries"] == 28
  assert figures["interval"][0] < figures["map"] < figures["interval"][1]


@pytest.fixture
def ranking():
  benchmark = Ilias.open(VECTORS)
  gallery_ids = [*benchmark.positive_ids, *(f"shard_000/{i:05d}" for i in range(50))]
  rng = np.random.default_rng(0)
  queries = benchmark.image_query_ids
  ids_QK = np.stack([rng.permutation(len(gallery_ids))[:30] for _ in queries]).astype(np.int32)
  scores_QK = -np.sort(-rng.random(ids_QK.shape), axis=1).astype(np.float32)
  return benchmark, queries, gallery_ids, Ranking(ids_QK, scores_QK)


@pytest.mark.parametrize("name", ["json", "similarities", "sims"])
def test_similarities_of_the_official_search_score_as_the_ranking_does(tmp_path, ranking, name):
  benchmark, queries, gallery_ids, found = ranking
  path = tmp_path / ("s.json" if name == "json" else "s.pkl")
  if name == "json":
    rows = zip(queries, found.ids, found.scores, strict=True)
    scores = {q: {gallery_ids[i]: float(s) for i, s in zip(ids, values, strict=True)} for q, ids, values in rows}
    path.write_text(json.dumps(scores))
  else:
    named = {"query_ids": queries, "db_ids": np.array(gallery_ids), name: found.scores, "ranks": found.ids}
    path.write_bytes(pickle.dumps(named))
  direct = benchmark.score(ranked_items(queries, gallery_ids, found))
  assert_close(benchmark.score(read_similarities(path)), direct, "all")
  assert benchmark.task("i2i", queries, gallery_ids).score(found)["map"] == pytest.approx(direct["map"])


def test_empty_places_of_a_ranking_are_left_out(ranking):
  _, queries, gallery_ids, found = ranking
  shorter = Ranking(np.where(np.arange(30) < 20, found.ids, -1), found.scores)
  assert {len(ids) for _, (ids, _) in ranked_items(queries, gallery_ids, shorter)} == {20}


def test_relevance_finds_positives_wherever_they_lie(ranking):
  benchmark, queries, gallery_ids, _ = ranking
  shuffled = [gallery_ids[i] for i in np.random.default_rng(1).permutation(len(gallery_ids))]
  relevance = benchmark.relevance(queries, shuffled)
  for query, positives in zip(queries, relevance.positives, strict=True):
    assert sorted(shuffled[i] for i in positives) == benchmark.positives_by_object()[object_of(query)]


def test_a_missing_or_repeated_positive_is_named(ranking):
  benchmark, queries, gallery_ids, _ = ranking
  with pytest.raises(ValueError, match=r"P000_00\.jpg' 0 times, and 1 of 48"):
    benchmark.relevance(queries, gallery_ids[1:])
  with pytest.raises(ValueError, match=r"P000_00\.jpg' 2 times"):
    benchmark.relevance(queries, [*gallery_ids, gallery_ids[0]])


def test_unknown_and_repeated_queries_are_refused(ranking):
  benchmark, queries, gallery_ids, _ = ranking
  with pytest.raises(ValueError, match="'somebody/query"):
    benchmark.relevance(["somebody/query/Q000_00.jpg"], gallery_ids)
  item = (np.array([gallery_ids[0]]), np.array([1.0]))
  with pytest.raises(ValueError, match="'nobody' is not ILIAS's"):
    benchmark.score([("nobody", item)])
  with pytest.raises(ValueError, match="comes twice"):
    benchmark.score([(queries[0], item), (queries[0], item)])


def test_missing_id_files_and_a_query_object_without_positives_are_named(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"image_query_ids\.txt; it comes with"):
    Ilias.open(tmp_path)
  shutil.copytree(VECTORS / "image_ids", tmp_path / "image_ids")
  positives = tmp_path / "image_ids" / "positive_ids.txt"
  positives.write_text("".join(x for x in positives.read_text().splitlines(True) if not x.startswith("obj_003")))
  with pytest.raises(ValueError, match="1 objects have image queries and no positive, the first 'obj_003'"):
    Ilias.open(tmp_path)


def test_without_a_taxonomy_the_rest_is_scored_and_distractor_ids_are_read_from_the_archive(tmp_path):
  shutil.copytree(VECTORS / "image_ids", tmp_path / "image_ids")
  figures = Ilias.open(tmp_path).score(read_similarities(VECTORS / "similarities.json"))
  assert figures["map"] == pytest.approx(EXPECTED["k=1000"]["map"], abs=1e-9)
  assert "categories" not in figures
  for broken, message in (
    (b"[1]", "is no taxonomy of ILIAS"),
    (b'{"a":\n"caf\xe9"}', "taxonomy.json, line 2, is not UTF-8"),
  ):
    (tmp_path / "taxonomy.json").write_bytes(broken)
    with pytest.raises(ValueError, match=message):
      Ilias.open(tmp_path)
  (tmp_path / "taxonomy.json").unlink()
  with gzip.open(tmp_path / "image_ids" / "distractor_ids.txt.gz", "wt") as file:
    file.write("shard_000/00000\nshard_000/00001\n")
  assert Ilias.open(tmp_path).distractor_ids() == ["shard_000/00000", "shard_000/00001"]


@pytest.mark.parametrize(
  ("name", "content", "message"),
  [
    ("s.json", b'{"a": ', "not whole JSON"),
    ("s.json", b"[1, 2]", "holds no"),
    ("s.pkl", pickle.dumps({"query_ids": []}), "holds no query_ids, db_ids"),
    ("s.csv", b"", r"neither \.json nor \.pkl"),
    (
      "s.pkl",
      pickle.dumps({"query_ids": ["q"], "db_ids": ["a"], "sims": np.ones((1, 2)), "ranks": np.array([[0, 1]])}),
      "ranks of 'q' do not fit",
    ),
  ],
)
def test_broken_similarity_files_are_explained(tmp_path, name, content, message):
  (tmp_path / name).write_bytes(content)
  with pytest.raises(ValueError, match=message):
    list(read_similarities(tmp_path / name))


def write_features(folder, name, ids, seed, width=WIDTH, scale=1.0):
  rows = np.random.default_rng(seed).normal(size=(len(ids), width))
  rows *= scale / np.linalg.norm(rows, axis=1, keepdims=True)
  put_hdf5(folder / f"features_{name}.hdf5", ids, rows.astype(np.float16))


@pytest.fixture
def features(tmp_path):
  benchmark = Ilias.open(VECTORS)
  write_features(tmp_path, "queries", benchmark.image_query_ids, 0)
  write_features(tmp_path, "text_queries", benchmark.text_query_ids, 1)
  write_features(tmp_path, "positives", benchmark.positive_ids, 2)
  for i in range(2):
    write_features(tmp_path, f"distractors_{i:05d}", [f"000{i}/{i}{n:04x}" for n in range(40)], 3 + i)
  return tmp_path


def test_published_features_give_both_tasks(features):
  i2i, t2i = open_tasks(VECTORS, features, distractor_files=2)
  assert (len(i2i.query_ids), len(t2i.query_ids), len(i2i.gallery)) == (18, 10, 48 + 80)
  scores_QN = i2i.queries[:].astype(np.float32) @ i2i.gallery[:].astype(np.float32).T
  ids_QK = np.argsort(-scores_QN, axis=1)
  ranking = Ranking(ids_QK.astype(np.int32), np.take_along_axis(scores_QN, ids_QK, 1))
  assert 0 < i2i.score(ranking)["map"] < 100
  perfect_QN = np.zeros_like(scores_QN)
  for row, positives in zip(perfect_QN, i2i.relevance.positives, strict=True):
    row[positives] = 1.0
  ids_QK = np.argsort(-perfect_QN, axis=1)
  perfect = Ranking(ids_QK.astype(np.int32), np.take_along_axis(perfect_QN, ids_QK, 1))
  assert i2i.score(perfect)["map"] == pytest.approx(100)


def test_mini_ilias_keeps_its_own_distractors(features):
  (features / "mini.txt").write_text("00000\n10027\n")
  task = open_tasks(VECTORS, features, 2, mini_ids=features / "mini.txt")[0]
  assert list(task.gallery.ids[48:]) == ["0000/00000", "0001/10027"]
  whole = open_tasks(VECTORS, features, 2)[0].gallery
  np.testing.assert_array_equal(task.gallery[48:], whole[[48, 48 + 79]])


def test_rows_come_in_the_order_asked_for(features):
  gallery = open_tasks(VECTORS, features, 2)[0].gallery
  everything = np.concatenate([chunk for _, chunk in gallery.chunks(17)])
  np.testing.assert_array_equal(gallery[:], everything)
  np.testing.assert_array_equal(gallery[[127, 0, 60, 0]], everything[[127, 0, 60, 0]])
  np.testing.assert_array_equal(gallery[np.array([[5, 100], [99, 5]])], everything[[[5, 100], [99, 5]]])


def truncated(folder):
  path = folder / "features_distractors_00001.hdf5"
  path.write_bytes(path.read_bytes()[:-300])


def twice(folder):
  shutil.copy(folder / "features_distractors_00000.hdf5", folder / "features_distractors_00001.hdf5")


@pytest.mark.parametrize(
  ("damage", "message"),
  [
    (lambda f: write_features(f, "positives", Ilias.open(VECTORS).positive_ids, 2, scale=3.0), "has length 3.*, not 1"),
    (lambda f: write_features(f, "distractors_00001", ["0001/0"], 3, width=WIDTH + 1), "9 wide and 8 wide"),
    (lambda f: write_features(f, "queries", Ilias.open(VECTORS).image_query_ids[1:], 0), "1 ids are missing"),
    (lambda f: (f / "features_distractors_00001.hdf5").unlink(), r"no .*distractors_00001\.hdf5"),
    (twice, "comes twice"),
    (truncated, r"distractors_00001\.hdf5"),
  ],
)
def test_features_that_are_damaged_or_not_the_benchmarks_are_named(features, damage, message):
  damage(features)
  with pytest.raises((ValueError, FileNotFoundError), match=message):
    open_tasks(VECTORS, features, 2)


@pytest.mark.parametrize("ending", ["json", "pkl"])
def test_an_empty_result_counts_zero(tmp_path, ending):
  content = json.loads((VECTORS / "similarities.json").read_text())
  first, second = list(content)[:2]
  if ending == "json":
    (tmp_path / "s.json").write_bytes(b"\xef\xbb\xbf" + json.dumps({first: {}, second: content[second]}).encode())
  else:
    ids, scores = list(content[second]), list(content[second].values())
    whole = {"query_ids": [first, second], "db_ids": ids, "sims": [[], scores], "ranks": [[], list(range(len(ids)))]}
    (tmp_path / "s.pkl").write_bytes(pickle.dumps(whole))
  benchmark = Ilias.open(VECTORS)
  figures = benchmark.score(read_similarities(tmp_path / f"s.{ending}"))
  alone = benchmark.score([(second, (np.array(list(content[second])), np.array(list(content[second].values()))))])
  assert figures["ap"] == {first: 0, second: alone["map"]}
  assert figures["oracle"] == pytest.approx(alone["oracle"] / 2)


@pytest.mark.parametrize(
  ("content", "message"),
  [
    ('{"q": {"a": 1, "a": 2}}', "s.json, has the field 'a' twice"),
    ('{"q": {"a": 1}, "q": {}}', "s.json, has the field 'q' twice"),
    ('{"q": {"a": "high"}}', "s.json: query 'q' has a score that is no number"),
    ('{"q": {"a": [0.5], "b": [0.4]}}', "s.json: query 'q' has a score that is no number"),
    ('{"q": {"a": 1%s}}' % ("0" * 400), "s.json: query 'q' has a score that is no number"),
    ('{"q": {"a": null}}', "s.json: .*'q'"),
    ('{"q": {"a": NaN}}', "s.json: .*'q'"),
  ],
)
def test_an_error_names_the_file_of_similarities(tmp_path, content, message):
  (tmp_path / "s.json").write_text(content.replace('"q"', json.dumps(Ilias.open(VECTORS).image_query_ids[0])))
  query = Ilias.open(VECTORS).image_query_ids[0]
  with pytest.raises(ValueError, match=message.replace("'q'", f"'{query}'")):
    Ilias.open(VECTORS).score(read_similarities(tmp_path / "s.json"), where=str(tmp_path / "s.json"))


def test_lists_with_a_byte_order_mark_are_read_as_without(tmp_path):
  shutil.copytree(VECTORS / "image_ids", tmp_path / "image_ids")
  for path in (tmp_path / "image_ids").glob("*.txt"):
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
  assert Ilias.open(tmp_path).scale == Ilias.open(VECTORS).scale
  assert Ilias.open(tmp_path).image_query_ids == Ilias.open(VECTORS).image_query_ids


def test_results_in_which_no_positive_is_known_are_told(caplog):
  benchmark = Ilias.open(VECTORS)
  assert (
    benchmark.score([(benchmark.image_query_ids[0], (np.array(["a.jpg"]), np.ones(1)))], where="s.json")["map"] == 0
  )
  assert "s.json has no positive of any query; are its ids written as in positive_ids.txt?" in caplog.text
