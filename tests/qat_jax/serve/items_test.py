import datetime

import numpy as np
import pyarrow as pa
import pytest

from qat_jax.serve.items import Items
from qat_jax.serve.limits import Refused

N = 40


@pytest.fixture(scope="module")
def items():
  rng = np.random.default_rng(0)
  columns = {
    "colour": pa.array([None if i == 3 else ("red", "green", "Grün")[i % 3] for i in range(N)]),
    "price": pa.array([None if i == 4 else float("nan") if i == 5 else i / 4 for i in range(N)]),
    "number": pa.array([(1 << 60) + i for i in range(N)]),
    "sold": pa.array([i % 2 == 0 for i in range(N)]),
    "day": pa.array([datetime.date(2026, 1, 1) + datetime.timedelta(i) for i in range(N)]),
    "kind": pa.array([f"kind {i % 4}" for i in range(N)]).dictionary_encode(),
  }
  ids = [f"é/{i}" if i % 2 else f"a{i}" for i in rng.permutation(N)]
  return Items(pa.chunked_array([ids[:7], ids[7:]]), pa.table(columns))


def test_ids_are_found_by_search_whatever_their_order(items):
  ids = items.ids.to_pylist()
  assert [items.position(name) for name in ids] == list(range(N))
  assert [items.position(name) for name in ("", "zz", "a", "\ud800")] == [None] * 4
  positions, unknown = items.known([ids[5], "nowhere", ids[5], ids[2]])
  assert positions.tolist() == [5, 2] and unknown == ["nowhere"]
  with pytest.raises(Refused, match="no item 'nowhere'"):
    items.positions([ids[0], "nowhere"])
  with pytest.raises(ValueError, match="occur more than once"):
    Items(pa.chunked_array([["a", "a"]]), pa.table({}))


@pytest.mark.parametrize(
  ("filters", "wanted"),
  [
    ({"colour": "red"}, lambda i: i % 3 == 0 and i != 3),
    ({"colour": ["red", "Grün"]}, lambda i: i % 3 != 1 and i != 3),
    ({"colour": []}, lambda i: False),
    ({"price": {"least": 2, "most": 3.5}}, lambda i: 8 <= i <= 14),
    ({"price": {}}, lambda i: i != 4),
    ({"price": 3}, lambda i: i == 12),
    ({"number": {"least": (1 << 60) + 30}}, lambda i: i >= 30),
    ({"number": str((1 << 60) + 1)}, lambda i: i == 1),
    ({"sold": True, "kind": "kind 2"}, lambda i: i % 4 == 2),
    ({"day": {"most": "2026-01-03"}}, lambda i: i <= 2),
  ],
)
def test_a_filter_passes_exactly_what_it_says(items, filters, wanted):
  assert np.flatnonzero(items.mask(filters)).tolist() == [i for i in range(N) if wanted(i)]


def test_filters_by_id_and_by_nothing(items):
  name = items.id(6)
  assert np.flatnonzero(items.mask({"id": name})).tolist() == [6]
  assert items.mask({}) is None
  with pytest.raises(ValueError, match="read-only"):  # it is shared by all who ask for it
    items.mask({"sold": True})[0] = False


@pytest.mark.parametrize(
  "filters",
  [{"size": 1}, {"colour": 1}, {"price": "3"}, {"sold": 1}, {"number": 1.5}, {"day": "soon"}, {"number": 1 << 70}],
)
def test_a_filter_that_does_not_fit_its_column_is_refused(items, filters):
  with pytest.raises(Refused) as error:
    items.mask(filters)
  assert error.value.status == 422 and next(iter(filters)) in str(error.value)


def test_records_are_what_a_browser_can_read_without_loss(items):
  (third, fifth) = items.records([3, 5])
  assert third["metadata"] == {"price": 0.75, "number": str((1 << 60) + 3), "sold": False, "day": "2026-01-04"} | {
    "kind": "kind 3"
  }
  assert "price" not in fifth["metadata"]  # NaN


def test_facets_have_the_values_of_short_columns_and_the_ends_of_numbers(items):
  assert items.facets["colour"] == {"type": "string", "values": ["Grün", "green", "red"]}
  assert items.facets["number"] == {"type": "int64", "least": str(1 << 60), "most": str((1 << 60) + N - 1)}
  assert items.facets["sold"]["values"] == [False, True]
