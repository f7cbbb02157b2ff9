"""Summary rows, metrics.json and the tables."""

import json

import numpy as np
import pytest

from eval.report.results import Result, own_figures, summarise
from eval.report.tables import amount, metrics_json, table_markdown, table_text


def result(method, values, query_type="text", **costs):
  return Result(query_type, method, np.array(values), np.round(np.nan_to_num(values)), **costs)


@pytest.fixture
def rows():
  return summarise(
    [
      result("plain", [0.1, 0.2, 0.6], ms_per_query=0.5),
      result("static", [0.2, 0.3, 0.7], ms_per_query=0.5),
      result("adapted", [0.4, 0.5, 0.9], ms_per_query=2.0, parameters=2_100_000, note="serves the closed form"),
      result("plain", [0.5, np.nan, 0.5], "image"),
    ]
  )


def test_rows_hold_means_and_paired_differences_of_their_own_query_type(rows):
  adapted = rows[2]
  assert adapted.map.value == pytest.approx(0.6)
  assert adapted.map.low < 0.6 < adapted.map.high
  assert adapted.to_plain.value == pytest.approx(0.3)
  assert adapted.to_static.low == pytest.approx(0.2)
  assert rows[0].to_plain is None
  assert rows[3].to_static is None


def test_a_query_without_positives_is_not_counted(rows):
  assert rows[3].queries == 2
  assert rows[3].map.value == 0.5


def test_metrics_json_has_the_agreed_form(rows):
  written = json.loads(json.dumps(metrics_json(rows, {"seed": 0}), allow_nan=False))
  assert written["provenance"] == {"seed": 0}
  assert len(written["results"]) == 2 * len(rows)
  assert written["results"][4] == {
    "query": "text",
    "method": "adapted",
    "metric": "map",
    "value": pytest.approx(0.6),
    "interval": [rows[2].map.low, rows[2].map.high],
    "queries": 3,
  }
  assert written["results"][5]["metric"] == "recall@1"
  assert {"query": "text", "method": "adapted", "against": "static"}.items() <= written["differences"][-1].items()
  assert written["costs"][2]["parameters"] == 2_100_000


def test_the_terminal_table_shows_figures_times_a_hundred_and_notes(rows):
  text = table_text(rows)
  line = next(line for line in text.splitlines() if line.startswith("adapted, whole gallery"))
  assert "60.00 [" in line
  assert "+30.00 [+30.0, +30.0]" in line
  assert "+20.00" in line
  assert "serves the closed form" in text
  assert "image queries (2)" in text
  assert max(map(len, text.splitlines())) <= 120


def test_the_markdown_table_has_one_cell_for_each_heading(rows):
  lines = [line for line in table_markdown(rows).splitlines() if line.startswith("|")]
  assert len({line.count("|") for line in lines[:5]}) == 1
  assert "| adapted, whole gallery | 60.00 [" in table_markdown(rows)
  assert "2.1M |" in lines[4]


def test_a_method_named_twice_is_refused():
  with pytest.raises(ValueError, match="two results of one method"):
    summarise([result("plain", [0.1]), result("plain", [0.2])])


def test_a_result_that_no_query_counts_for_is_refused():
  with pytest.raises(ValueError, match="no query has a positive"):
    summarise([result("plain", [np.nan, np.nan])])


def test_unequal_lengths_are_refused():
  with pytest.raises(ValueError, match="one number a query"):
    Result("text", "plain", np.zeros(3), np.zeros(2))


@pytest.mark.parametrize(
  ("value", "text"), [(None, ""), (0, "0"), (0.01234, "0.0123"), (131072, "131,072"), (2_100_000, "2.1M")]
)
def test_costs_are_short(value, text):
  assert amount(value) == text


def test_tasks_are_compared_each_with_its_own_and_written_with_their_figures():
  own = own_figures("oxford", {"map": 0.5, "interval": [0.4, 0.6], "queries": 2, "ap": {"q": 1}, "scale": {"s": 30}})
  rows = summarise(
    result(method, values, "image", task=task, figures=own)
    for task, shift in (("easy", 0.5), ("hard", 0.0))
    for method, values in (("plain", [0.1 + shift, 0.3]), ("query_only", [0.2 + shift, 0.3]), ("adapted", [0.3, 0.3]))
  )
  written = metrics_json(rows, {})
  differences = {(d["task"], d["method"], d["against"]): d["value"] for d in written["differences"]}
  assert differences["easy", "adapted", "plain"] == pytest.approx(-0.15)
  assert differences["hard", "adapted", "query_only"] == pytest.approx(0.05)
  assert own == {
    "oxford/map": {"value": 0.5, "interval": [0.4, 0.6]},
    "oxford/scale/s": {"value": 30.0, "interval": None},
  }
  line = next(r for r in written["results"] if r["metric"] == "oxford/map")
  assert line == {
    "query": "image",
    "task": "easy",
    "method": "plain",
    "metric": "oxford/map",
    **own["oxford/map"],
    "queries": 2,
  }
  assert "**image queries, hard** (2)" in table_markdown(rows)
  assert "image queries, easy (2)" in table_text(rows)
