"""The short form of the hunt: cases of few shapes, so that little is compiled; and that it finds what is planted."""

import dataclasses

import numpy as np
import pytest

from qat_jax.search import exact, spectrum
from tests.faults import search

NORM, SPECTRUM = spectrum.norm, spectrum.spectrum
SHAPES = {"width": 8, "directions": 12, "queries": 2, "items": 256, "extra": "nothing"}


def cases(count: int, places: tuple[str, ...] = ("host", "elsewhere"), **same: object) -> list[search.Case]:
  return [
    dataclasses.replace(
      search.draw(0, number), **SHAPES, **{"place": places[number % len(places)], "dtype": "float32", **same}
    )
    for number in range(count)
  ]


def too_large(*args: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  value_QE, direction_QDE = SPECTRUM(*args)
  return 1.001 * value_QE, direction_QDE


def failures(cases: list[search.Case]) -> list[tuple[str, str]]:
  return [(search.as_test(case), wrong) for case in cases if (wrong := search.failure(case))]


def test_no_awkward_case_is_ranked_otherwise_than_by_float64():
  assert not failures(cases(60))


@pytest.mark.parametrize(
  "case",
  [
    # sums of a thousand like numbers, each rounded the same way
    search.Case(width=1000, directions=4, query="an item", factors="blind", gallery="signs"),
    search.Case(seed=3, width=3000, directions=4, query="an item", factors="blind", gallery="signs"),
    search.Case(width=3000, query="an item", gallery="signs", k=63),
    # of equal items that the map makes short, some came in another call of the same matrix product
    search.Case(seed=8, width=1000, directions=1, query="an item", factors="blind", gallery="near blind"),
    # of equal items some came at the end of a matrix product, where other instructions make up the rest
    search.Case(seed=1376158502, items=156, k=63, gallery="copies", place="device"),
  ],
)
def test_nor_one_that_failed_once(case):
  search.check(case)


def test_nor_with_half_precision():
  assert not failures(cases(10, ("elsewhere",), dtype="float16"))


@pytest.mark.parametrize(
  ("where", "name", "planted", "case"),
  [
    (spectrum, "spectrum", too_large, {"factors": "items", "gallery": "equal"}),
    (
      spectrum,
      "norm",
      lambda *args: 0.9 * NORM(*args),
      {"factors": "opposite", "gallery": "singular", "directions": 40},
    ),
    (exact, "CERTAIN", np.inf, {"factors": "blind", "gallery": "near blind"}),
    (exact, "MARGIN", -0.5, {"factors": "opposite", "gallery": "singular"}),
  ],
  ids=["values too large", "a cut too small", "never float64", "looked at once"],
)
def test_what_is_planted_is_found(where, name, planted, case, monkeypatch):
  monkeypatch.setattr(where, name, planted)
  case = search.Case(**{"width": 24, "directions": 24, "queries": 2, "items": 1024, "k": 1} | case)
  assert any(search.failure(dataclasses.replace(case, seed=seed)) for seed in range(30))


def test_a_case_that_fails_is_made_simple_and_says_how_to_repeat_it(monkeypatch):
  real = search.rank

  def first_lost(own, gallery, k, **masks):
    ranking = real(own, gallery, k, **masks)
    return ranking if k == 1 else ranking.replace(ids=np.where(np.arange(k) == 0, -1, ranking.ids))

  monkeypatch.setattr(search, "rank", first_lost)
  failed = search.Case(seed=3, directions=4, factors="cancel", gallery="copies", k=63)
  assert "items are missing" in search.failure(failed)
  assert search.as_test(search.shrunk(failed)).endswith("search.check(search.Case(seed=3))")
