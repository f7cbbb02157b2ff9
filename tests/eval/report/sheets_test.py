"""Which queries are shown, and what their rows hold."""

import numpy as np
from PIL import Image

from eval.report.results import Result
from eval.report.sheets import build_sheets, chosen, data_uri, draw_sheets
from qat_jax.types import Relevance


def result(method, precision, ids_QK):
  return Result("image", method, np.array([precision]), np.zeros(1), ids_QK=ids_QK)


def test_queries_that_gained_most_come_first_then_typical_ones_then_those_that_lost_most():
  before_Q = np.full(9, 0.5)
  after_Q = np.array([0.9, 0.5, 0.1, 0.6, 0.4, 0.52, 0.55, np.nan, 0.53])
  shown = chosen(before_Q, after_Q, str, count=2)
  assert [q for q, typical in shown if not typical] == [0, 3, 2, 4]
  assert [q for q, typical in shown if typical] == [8]  # the fourth of eight
  assert chosen(before_Q, before_Q, str, count=2) == [(4, True)]


def test_a_query_is_shown_once_however_many_images_have_its_caption():
  before_Q, after_Q = np.zeros(6), np.array([0.9, 0.8, 0.7, 0.6, 0.1, 0.2])
  shown = chosen(before_Q, after_Q, lambda q: "a cup" if q < 3 else f"no. {q}", count=2)
  assert [q for q, _ in shown] == [0, 3, 5]


def test_rows_hold_pictures_in_order_without_ignored_items():
  relevance = Relevance([np.array([2])], [np.array([0])])
  pictures = [Image.new("RGB", (8, 8), (n, 0, 0)) for n in range(5)]
  before_QK, after_QK = np.array([[1, 0, 3, 2]]), np.array([[0, 2, 1, -1]])
  before, after = result("plain", 1 / 3, before_QK), result("adapted", 1.0, after_QK)
  (sheet,) = build_sheets(before, after, relevance, lambda q: "cup", lambda n: pictures[n], 2)
  assert [(p.getpixel((0, 0))[0], good) for p, good in sheet.before] == [(1, False), (3, False)]
  assert [(p.getpixel((0, 0))[0], good) for p, good in sheet.after] == [(2, True), (1, False)]
  assert sheet.title == "average precision 33\N{NO-BREAK SPACE}→\N{NO-BREAK SPACE}100"
  assert sheet.query == "cup"


def test_the_drawn_sheet_frames_relevant_pictures_in_green():
  picture = Image.new("RGB", (20, 20), "black")
  relevance = Relevance([np.array([0])], [np.array([], int)])
  before, after = result("plain", 0.5, np.array([[1, 0]])), result("adapted", 1.0, np.array([[0, 1]]))
  (sheet,) = build_sheets(before, after, relevance, lambda q: picture, lambda n: picture, 2)
  drawn = np.asarray(draw_sheets([sheet], side=50)).astype(int)
  green = (drawn[..., 1] > drawn[..., 0] + 80) & (drawn[..., 1] > drawn[..., 2] + 20)
  columns = np.flatnonzero(green.any(axis=0))
  rows = np.flatnonzero(green.any(axis=1))
  assert 0 < len(columns) < drawn.shape[1] / 2 + 60
  assert rows.max() - rows.min() > 50  # the first picture of one row, the second of the other


def test_a_picture_of_any_mode_becomes_a_small_jpeg():
  for mode in ("RGBA", "L", "P"):
    assert data_uri(Image.new(mode, (300, 100))).startswith("data:image/jpeg;base64,/9j/")
