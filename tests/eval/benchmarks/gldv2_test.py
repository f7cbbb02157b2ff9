"""Google Landmarks v2 from its CSV files."""

import numpy as np
import pytest

from eval.benchmarks import gldv2
from qat_jax.types import Ranking

SOLUTION = "id,images,Usage\nq0,a b,Public\nq1,c,Private\nq2,d,Private\nq3,None,Ignored\n"


def write(folder, **files):
  for name, text in files.items():
    (folder / f"{name}.csv").write_text(text)
  return [folder / f"{name}.csv" for name in files]


def test_queries_without_predictions_count_zero_and_ignored_ones_not_at_all(tmp_path):
  files = write(tmp_path, solution=SOLUTION, predictions="id,images\nq0,a a x b\nq1,c\n")
  figures = gldv2.score_predictions(*files)
  public = (1 + 2 / 4) / 2  # a first, its repetition skipped, b at the fourth place
  assert figures["public"] == pytest.approx(public)
  assert figures["private"] == pytest.approx(1 / 2)
  assert figures["map"] == pytest.approx((public + 1 + 0) / 3)
  assert figures["queries"] == 3
  assert gldv2.score_predictions(*write(tmp_path, solution=SOLUTION, predictions="id,images\n"))["map"] == 0


def test_a_task_scores_a_ranking_of_the_index(tmp_path):
  solution, index = write(tmp_path, solution=SOLUTION, index="id\nx\na\nb\nc\nd\n")
  task = gldv2.open_task(solution, index)
  assert task.query_ids == ["q0", "q1", "q2"]
  assert [p.tolist() for p in task.relevance.positives] == [[1, 2], [3], [4]]
  ids_QK = np.array([[1, 0, 2], [3, 1, 2], [0, 4, -1]])
  assert task.score(Ranking(ids_QK, None))["map"] == pytest.approx(((1 + 2 / 3) / 2 + 1 + 1 / 2) / 3)


@pytest.mark.parametrize(
  ("files", "message"),
  [
    ({"solution": SOLUTION, "predictions": "id,images\nq9,a\n"}, "'q9' is not in the solution"),
    ({"solution": SOLUTION, "predictions": "id,images\nq0,a\nq0,b\n"}, "'q0' comes twice"),
    ({"solution": SOLUTION, "predictions": "id,landmarks\nq0,a\n"}, "no images"),
    ({"solution": "id,images,Usage\nq0,a,Secret\n", "predictions": "id,images\n"}, "Usage 'Secret'"),
    ({"solution": "id,images,Usage\nq0,a a,Public\n", "predictions": "id,images\n"}, "'a' comes twice"),
    ({"solution": SOLUTION, "predictions": "id,images\nq0,a,b\nq1,c\n"}, r"row \['q0', 'a', \['b'\]\] has more cells"),
    ({"solution": SOLUTION, "predictions": 'id,images\nq0,"a,b"\n'}, "images of query q0 have commas"),
    (
      {"solution": SOLUTION, "predictions": 'id,images\nq0,"a b\nq1,c\n'},
      "predictions.csv is no such table: unexpected",
    ),
    ({"solution": SOLUTION, "predictions": "id,images,images\nq0,a,b\n"}, "has the column 'images' twice"),
    ({"solution": "id,images,Usage\nq0,,Public\n", "predictions": "id,images\n"}, "no relevant image"),
  ],
)
def test_broken_files_are_explained(tmp_path, files, message):
  with pytest.raises(ValueError, match=message):
    gldv2.score_predictions(*write(tmp_path, **files))


@pytest.mark.parametrize(
  ("index", "message"), [("id\na\nb\nd\n", r"1 images of q1 .*first c"), ("id\na\nb\nc\nd\na\n", "'a' comes twice")]
)
def test_an_index_that_does_not_fit_is_named(tmp_path, index, message):
  with pytest.raises(ValueError, match=message):
    gldv2.open_task(*write(tmp_path, solution=SOLUTION, index=index))


def test_files_with_a_byte_order_mark_are_read_as_without(tmp_path):
  mark = "\ufeff"
  files = write(tmp_path, solution=mark + SOLUTION, predictions=mark + "id,images\nq0,a b\nq1,c\nq2,\n")
  assert gldv2.score_predictions(*files)["map"] == pytest.approx(2 / 3)
  task = gldv2.open_task(*write(tmp_path, solution=mark + SOLUTION, index=mark + "id\na\nb\nc\nd\n"))
  assert list(task.gallery_ids) == [*"abcd"]


def test_predictions_in_which_nothing_is_known_are_told(tmp_path, caplog):
  files = write(tmp_path, solution=SOLUTION, predictions="id,images\nq0,a.jpg b.jpg\nq1,c.jpg\n")
  assert gldv2.score_predictions(*files)["map"] == 0
  assert "predictions.csv names no image that is right for any query; are its ids written as" in caplog.text
