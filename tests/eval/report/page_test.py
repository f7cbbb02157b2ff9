"""The page holds everything itself, and shows what it was given."""

import dataclasses
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from eval.methods import METHODS
from eval.report.page import write_report
from eval.report.results import Result, Skipped, summarise
from eval.report.sheets import Sheet


class Page(HTMLParser):
  """Counts pictures, and checks that every element is closed."""

  def __init__(self, text):
    super().__init__()
    self.open, self.sources, self.relevant = [], [], 0
    self.feed(text)

  def handle_starttag(self, tag, attributes):
    attributes = dict(attributes)
    if tag == "img":
      self.sources.append(attributes["src"])
    if attributes.get("class") == "relevant":
      self.relevant += 1
    if tag not in ("img", "meta"):
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag


@pytest.fixture
def rows():
  rng = np.random.default_rng(0)
  return summarise(
    Result("text", method, rng.random(30) * best, np.ones(30), ms_per_query=time)
    for method, best, time in (("plain", 0.3, 0.1), ("static", 0.5, 0.1), ("adapted", 0.9, 2.0))
  )


@pytest.fixture
def sheet():
  picture = Image.new("RGB", (30, 20), "red")
  return Sheet(
    query="<a red cup> & saucer",
    before=[(picture, False), (picture, True)],
    after=[(picture, True), (picture, True)],
    title="average precision 20 → 90",
    query_type="text",
    gain=0.7,
  )


def test_the_page_is_whole_and_needs_no_other_file(tmp_path, rows, sheet):
  curves = tmp_path / "metrics.jsonl"
  curves.write_text('{"step": 1, "loss": 2.0, "name": "text/adaptive"}\n{"step": 2, "loss": 1.0, "val_map": 0.2}\n{"st')
  write_report(tmp_path / "eval", rows, {"seed": 3}, about="A gallery of 5 & more.", sheets=[sheet], curves=curves)
  text = (tmp_path / "eval" / "report.html").read_text()
  page = Page(text)
  assert page.open == []
  assert all(source.startswith("data:image/") for source in page.sources)
  assert len(page.sources) == 4 + 2 + 2  # pictures; latency, wins and losses; loss, validation
  assert page.relevant == 3
  assert "&lt;a red cup&gt; &amp; saucer" in text
  assert not re.search(r'(href|src)="(?!data:)', text)
  assert not re.search(r"url\((?!data:)|@import", text)


def test_metrics_and_markdown_lie_beside_the_page(tmp_path, rows):
  write_report(tmp_path, rows, {"seed": 3})
  assert json.loads((tmp_path / "metrics.json").read_text())["provenance"] == {"seed": 3}
  assert (tmp_path / "table.md").read_text().startswith("**text queries** (30)")
  assert sorted(p.name for p in tmp_path.iterdir()) == ["metrics.json", "report.html", "table.md"]


def test_the_headline_says_which_method_it_is_about_and_what_it_gained(tmp_path, rows):
  write_report(tmp_path, rows, {})
  tile = re.search(r'<div class="tile">.*?</div>', (tmp_path / "report.html").read_text()).group()
  assert f"{100 * rows[2].map.value:.1f}" in tile
  assert f"+{100 * rows[2].to_plain.value:.2f}" in tile
  assert "adapted, whole gallery" in tile


def test_a_report_without_times_sheets_or_references_is_written(tmp_path):
  rows = summarise([Result("image", "own_method", np.array([0.5, 0.25]), np.ones(2))])
  write_report(tmp_path, rows, {})
  page = Page((tmp_path / "report.html").read_text())
  assert page.sources == []


def test_queries_that_gained_and_those_that_lost_are_apart(tmp_path, rows, sheet):
  lost = dataclasses.replace(sheet, query="a lost cup", gain=-0.5)
  write_report(tmp_path, rows, {}, sheets=[sheet, lost])
  text = (tmp_path / "report.html").read_text()
  assert text.count("a lost cup") == 1
  assert text.index("Gained most") < text.index("a red cup") < text.index("Lost most") < text.index("a lost cup")


def test_tasks_have_sections_of_their_own_with_the_benchmarks_figures_and_what_was_not_run(tmp_path):
  figures = {"oxford/mp@10": {"value": 0.7125, "interval": None}, "oxford/scale/tiny": {"value": 0.5, "interval": None}}
  rows = summarise(
    Result("image", "plain", np.linspace(0, top, 5), np.ones(5), task=task, figures=figures)
    for task, top in (("easy", 0.9), ("hard", 0.3))
  )
  skipped = [Skipped("image", "hard", "diffusion", "the gallery is <large>")]
  write_report(tmp_path, rows, {}, skipped=skipped)
  text = (tmp_path / "report.html").read_text()
  assert Page(text).open == []
  easy, hard = text.split("<h2>")[1:3]
  assert easy.startswith("Image queries, easy") and hard.startswith("Image queries, hard")
  assert "diffusion: the gallery is &lt;large&gt;." in hard and "diffusion" not in easy
  assert "<td>0.7125</td>" in easy and "tiny" not in easy
  written = json.loads((tmp_path / "metrics.json").read_text())
  assert written["skipped"] == [
    {"query": "image", "task": "hard", "method": "diffusion", "reason": "the gallery is <large>"}
  ]


def test_a_long_note_stands_below_the_table(tmp_path):
  notes = ("short", "a note that goes on and on, and says how each of many numbers was tuned on validation")
  rows = summarise(
    Result("text", method, np.ones(3), np.ones(3), note=note) for method, note in zip("ab", notes, strict=True)
  )
  write_report(tmp_path, rows, {})
  table, rest = (tmp_path / "report.html").read_text().split("</table>")[:2]
  assert notes[0] in table and notes[1] not in table
  assert notes[1] in rest and notes[0] not in rest


def test_every_method_has_a_colour_and_a_title_of_its_own():
  for field in ("colour", "title"):
    assert len({getattr(method, field) for method in METHODS.values()}) == len(METHODS)
