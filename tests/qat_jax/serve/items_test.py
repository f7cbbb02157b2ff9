import datetime
import decimal
import json

import numpy as np
import pyarrow as pa
import pytest

from qat_jax.serve import items as items_module
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


def test_many_ids_are_looked_up_together_as_each_alone(items, monkeypatch):
  names = [*items.ids.to_pylist()[::-3], "nowhere", "\ud800", items.id(1), items.id(1)]
  alone = items.known(names)
  monkeypatch.setattr(items_module, "MANY", 2)
  together = items.known(names)
  assert together[0].tolist() == alone[0].tolist() and together[1] == alone[1] == ["nowhere", "\ud800"]


@pytest.mark.parametrize(
  ("filters", "wanted"),
  [
    ({"colour": "red"}, lambda i: i % 3 == 0 and i != 3),
    ({"colour": ["red", "Grün"]}, lambda i: i % 3 != 1 and i != 3),
    ({"colour": []}, lambda i: False),
    ({"price": {"least": 2, "most": 3.5}}, lambda i: 8 <= i <= 14),
    ({"price": {}}, lambda i: i not in (4, 5)),
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


HARD = {
  "zero": pa.array([0.0, -0.0, float("nan"), 1.5, None]),
  "half": pa.array(np.arange(5), pa.float32()).cast(pa.float16()),
  "single": pa.array([0.1, 0.2, 0.3, None, float("inf")], pa.float32()),
  "small": pa.array([1, 2, None, -3, 100], pa.int8()),
  "great": pa.array([2**64 - 1, 2**63, 1, 2, None], pa.uint64()),
  "long": pa.array([2**53, 2**53 + 1, -(2**53) - 1, None, 2**62]),
  "fine": pa.array([1, 2, 3, 10**18 + 1, None], pa.timestamp("ns")),
  "zoned": pa.array(
    [datetime.datetime(2026, 5, 1, i, tzinfo=datetime.UTC) for i in range(5)], pa.timestamp("s", "UTC")
  ),
  "time": pa.array([datetime.time(i) for i in range(4)] + [None]),
  "money": pa.array([decimal.Decimal(x) for x in ("1.10", "2.20", "-1", "3.3", "4")], pa.decimal128(9, 2)),
  "view": pa.array(["a", "b", None, "a", "e\u0301"], pa.string_view()),
  "nothing": pa.nulls(5),
}


@pytest.fixture(scope="module")
def hard():
  return Items(pa.chunked_array([list("abcde")]), pa.table(HARD))


@pytest.mark.parametrize(
  ("column", "wanted", "passes"),
  [
    ("zero", 0, "ab"),
    ("zero", [-0.0, 1.5], "abd"),
    ("half", {"least": 3}, "de"),
    ("half", 1, "b"),
    ("single", 0.1, "a"),
    ("single", {"least": 1e300}, "e"),
    ("small", {"least": -1000, "most": 1e9}, "abde"),
    ("small", {"least": 1000}, ""),
    ("small", {"least": 1.5}, "be"),
    ("great", {"least": -1}, "abcd"),
    ("great", {"least": 0.5, "most": 2}, "cd"),
    ("great", str(2**64 - 1), "a"),
    ("long", {"least": 2**53 + 1}, "be"),
    ("long", {"most": float(2**53)}, "ac"),
    ("long", 2**53 + 1, "b"),
    ("fine", "1970-01-01T00:00:00.000000002", "b"),
    ("fine", ["1970-01-01T00:00:00.000000002"], "b"),
    ("fine", {"least": "1970-01-02"}, "d"),
    ("zoned", {"least": "2026-05-01T05:00:00+02:00"}, "de"),
    ("zoned", "2026-05-01 01:00:00Z", "b"),
    ("time", {"least": "02:00"}, "cd"),
    ("money", 1.1, "a"),
    ("money", {"most": "2.205"}, "abc"),
    ("view", "a", "ad"),
    ("view", "é", ""),  # another text than e with an accent behind it
    ("nothing", {}, ""),
  ],
)
def test_awkward_columns_are_filtered_by_what_they_say(hard, column, wanted, passes):
  assert "".join("abcde"[i] for i in np.flatnonzero(hard.mask({column: wanted}))) == passes


@pytest.mark.parametrize(
  ("column", "wanted"),
  [("single", 1e300), ("small", 1000), ("zoned", "2026-05-01"), ("money", "1.105"), ("time", "late"), ("nothing", 1)],
)
def test_a_value_that_an_awkward_column_cannot_have_is_refused(hard, column, wanted):
  with pytest.raises(Refused, match="is no value of it"):
    hard.mask({column: wanted})


def test_awkward_columns_are_shown_and_counted(hard):
  first, last = (hard.records([place])[0]["metadata"] for place in (0, 4))
  assert first["fine"] == "1970-01-01 00:00:00.000000001" and first["great"] == str(2**64 - 1)
  assert first["money"] == "1.10" and first["view"] == "a" and "single" not in last
  assert json.loads(json.dumps(hard.facets, allow_nan=False))["half"] == {"type": "float", "least": 0.0, "most": 4.0}


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
