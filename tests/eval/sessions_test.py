import numpy as np
import pytest

from eval import sessions
from eval.sessions import Marks, SessionQueries
from qat_jax.types import Relevance

GALLERY_ND = np.array([[1, 0], [0.8, 0.6], [0.6, 0.8], [0, 1], [-1, 0]], np.float32)


@pytest.fixture
def collection():
  query_QD = np.array([[1, 0]], np.float32)
  return SessionQueries(query_QD, GALLERY_ND, query_QD @ GALLERY_ND.T, lambda items: GALLERY_ND[items] @ GALLERY_ND.T)


@pytest.mark.parametrize(
  ("name", "expected"),
  [
    ("next page, no marks", [1, 0.8, 0.6, 0, -1]),
    ("refine", [1, 2, 2.2, 2, -1]),  # s + 2 · the mark's
    ("Rocchio 1.0, 0.0", np.array([1, 1.4, 1.4, 1, -1]) / np.sqrt(2)),
    ("Qdrant, average vector", [2, 2.2, 2, 1, -2]),  # along twice the mean of (1, 0) and (0, 1), less (−1, 0)
    ("Qdrant, best score", [1, 0.8, 0.8, 1, -1]),
    ("Qdrant, sum of scores", [2, 2.2, 2, 1, -2]),
  ],
)
def test_formulas_by_hand(collection, name, expected):
  score_N = sessions.methods()[name](collection, 0, Marks([3], [4]))
  np.testing.assert_allclose(score_N, expected, atol=1e-6)


class Split:
  def relevance(self, query_type):
    return Relevance([np.array([1, 3, 4])], [np.array([0])])


def test_what_was_shown_is_out_of_the_gallery_and_marks_lift_what_is_left(collection, monkeypatch):
  monkeypatch.setattr(sessions, "session_queries", lambda *args: collection)
  found = sessions.sessions(None, Split(), "image", rounds=2, page=1, flip=0.0, seed=0)
  # page 1 shows item 1, which is right; left are 2 (wrong), 3 and 4 (right), in this order without marks
  assert found["next page, no marks"][0].tolist() == [pytest.approx((1 / 2 + 2 / 3) / 2)]
  # the mark (0.8, 0.6) leaves that order: (0.6 + 2 · 0.96), (0 + 2 · 0.6), less than nothing
  assert found["refine"][0].tolist() == [pytest.approx((1 / 2 + 2 / 3) / 2)]
  # page 2 shows item 2, which is wrong: now only right ones are left
  assert found["refine"][1].tolist() == [1.0]


def test_a_person_who_is_wrong_marks_the_other_one_and_is_measured_on_the_same_queries(collection, monkeypatch):
  monkeypatch.setattr(sessions, "session_queries", lambda *args: collection)
  right = sessions.sessions(None, Split(), "image", rounds=1, page=1, flip=0.0, seed=0)
  wrong = sessions.sessions(None, Split(), "image", rounds=1, page=1, flip=1 - 1e-9, seed=0)
  assert wrong["refine"][0].tolist() == right["next page, no marks"][0].tolist()  # item 1 was marked as wrong


def test_a_session_without_marks_is_refused(collection, monkeypatch):
  monkeypatch.setattr(sessions, "session_queries", lambda *args: collection)
  monkeypatch.setattr(Split, "relevance", lambda self, name: Relevance([np.array([4])], [np.array([0])]))
  with pytest.raises(ValueError, match="no image query has a right mark"):
    sessions.sessions(None, Split(), "image", rounds=1, page=1, flip=0.0, seed=0)


def test_pictures_of_one_thing_add_and_are_out_of_the_gallery_for_any_number(collection, monkeypatch):
  monkeypatch.setattr(sessions, "session_queries", lambda *args: collection)
  monkeypatch.setattr(Split, "relevance", lambda self, name: Relevance([np.array([1, 2, 3])], [np.zeros(0, int)]))
  found = sessions.several_pictures(None, Split(), seed=0)
  assert all(len(rounds) == 3 for rounds in found.values())
  own = np.random.default_rng(0).choice([1, 2, 3], 2, replace=False)
  left = ({1, 2, 3} - set(own.tolist())).pop()
  for count, precision_Q in enumerate(found["together"]):
    score_N = GALLERY_ND @ (GALLERY_ND[0] + GALLERY_ND[own[:count]].sum(axis=0))
    rank = 1 + sum(score_N[other] > score_N[left] for other in (0, 4))
    assert precision_Q.tolist() == [pytest.approx(1 / rank)]
