"""The report for those who use a keyboard, a screen reader, dark mode or paper: axe-core finds nothing."""

import html
import importlib.util
import json
import pathlib
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from eval.report.page import write_report
from eval.report.results import Result, Skipped, summarise
from eval.report.sheets import Sheet

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
AXE = importlib.util.find_spec("axe_core_python")
QUIET = (
  *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
  *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
needs_browser = pytest.mark.skipif(not (CHROMIUM and AXE), reason="no Chromium, or no axe-core-python")


def result(method, best, seed=0, **more):
  rng = np.random.default_rng(seed)
  costs = {"ms_per_query": 0.1, "offline_seconds": 1234.0, "extra_bytes_per_item": 1024.0, "parameters": 2_200_000}
  hits_Q = np.repeat([0.0, 1.0], 20)
  return Result("text", method, rng.random(40) * best, np.ones(40), hit10_Q=hits_Q, **costs, **more)


@pytest.fixture
def page(tmp_path):
  """A report with everything that it can have."""
  figures = {"oxford/mp@10": {"value": 0.7125, "interval": None}}
  rows = summarise(
    [
      result("plain", 0.3, figures=figures),
      result("static", 0.7, 1),
      result("whitening", 0.8, 2, note="a note that is so long that it stands below the table, and not in it"),
      result("adapted", 0.9, note="serves query_only_remembering"),
      result("adapted_shortlist", 0.9),
    ]
  )
  picture = Image.new("RGB", (30, 20), "red")
  shown = [(picture, True), (picture, False)]
  sheets = [
    Sheet("a red cup", shown, shown, "average precision 3 → 35", "text", gain, typical=typical)
    for gain, typical in ((0.3, False), (0.1, True), (-0.2, False))
  ]
  curves = tmp_path / "metrics.jsonl"
  curves.write_text(
    "".join(f'{{"step": {i}, "loss": {9 - i}, "val_map": 0.{i}, "name": "text/static"}}\n' for i in (1, 2))
  )
  skipped = [Skipped("text", "", "diffusion", "the gallery is large")]
  write_report(tmp_path, rows, {"seed": 3}, about="5 images.", sheets=sheets, curves=curves, skipped=skipped)
  return tmp_path / "report.html"


def shown_by_chromium(page, *flags):
  """Returns what Chromium makes of a page once its scripts have run."""
  profile = page.parent / "profile"
  command = [CHROMIUM, *QUIET, f"--user-data-dir={profile}", "--virtual-time-budget=20000", "--dump-dom", *flags]
  done = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=120, check=False)
  assert done.returncode == 0, done.stderr[-500:]
  return done.stdout


def complaints(page, *flags):
  """Returns what axe-core finds, by rule, with the first element of each."""
  script = (pathlib.Path(AXE.origin).parent / "axe.min.js").read_text()
  run = """
    document.querySelectorAll("details").forEach(d => d.open = true);
    axe.run().then(found => {
      const of = list => list.map(v => [v.id, v.nodes[0].html.slice(0, 120), v.nodes[0].failureSummary]);
      const told = {wrong: of(found.violations), rules: found.passes.length};
      document.documentElement.innerHTML = "<body><pre></pre></body>";
      document.querySelector("pre").textContent = "AXE" + JSON.stringify(told) + "END";
    });
  """
  copy = page.with_name("with_axe.html")
  copy.write_text(page.read_text().replace("</body>", f"<script>{script}</script><script>{run}</script></body>"))
  found = re.search(r"AXE(.*)END", html.unescape(shown_by_chromium(copy, *flags)), re.DOTALL)
  assert found, "axe-core did not finish"
  told = json.loads(found[1])
  assert told["rules"] > 15  # it has looked
  return told["wrong"]


@needs_browser
@pytest.mark.parametrize("flags", [[], ["--blink-settings=preferredColorScheme=0"]], ids=["light", "dark"])
def test_axe_finds_nothing(page, flags):
  assert complaints(page, *flags) == []


@needs_browser
def test_axe_finds_what_is_wrong(page):
  text = page.read_text().replace("--muted: #5f6975", "--muted: #aab2bb").replace('<html lang="en">', "<html>")
  page.write_text(text)
  assert {"color-contrast", "html-has-lang"} <= {rule for rule, *_ in complaints(page)}


@needs_browser
def test_on_a4_no_column_is_lost(page):
  rules = "@media print {"
  text = page.read_text()
  assert text.count(rules) == 1 and "@page { size: A4; margin: 14mm; }" in text
  widths = """<script>
    const of = e => [e.scrollWidth, e.clientWidth];
    const told = JSON.stringify([...document.querySelectorAll(".scroll, main")].map(of));
    document.documentElement.innerHTML = "<body><pre>WIDTHS" + told + "END</pre></body>";
  </script></body>"""
  copy = page.with_name("printed.html")  # the rules for paper, on a screen as wide as A4 between its margins
  copy.write_text(text.replace(rules, "@media all {").replace("</body>", widths))
  found = re.search(r"WIDTHS(.*)END", shown_by_chromium(copy, "--window-size=688,900"))
  measured = json.loads(found[1])
  assert len(measured) >= 2 and all(wanted <= there for wanted, there in measured), measured


def test_pictures_say_what_they_show_and_what_scrolls_is_reached_by_keyboard(page):
  text = page.read_text()
  alts = re.findall(r'<img alt="([^"]*)"', text)
  assert "plain score 1" in text and all(alts)
  assert any(alt.startswith("mAP × 100 over milliseconds a query: plain score 1") for alt in alts)
  assert any("against plain score 40 queries are better and 0 worse" in alt for alt in alts)
  assert "loss by step: text/static from 8 to 7" in alts
  for area in re.findall(r'<(?:div class="scroll"|pre)[^>]*>', text):
    assert 'tabindex="0"' in area and "aria-label=" in area


def test_the_head_says_what_serves_and_compares_with_the_best_other_row(page):
  tile = re.search(r'<div class="tile">.*?</div>', page.read_text()).group()
  assert "serves: <b>query only remembering</b>" in tile
  assert "against whitening, the best other row" in tile and "against the plain score" in tile
  assert "50.0% → 50.0% of queries have a hit in the first 10" in tile


def test_a_map_that_serves_is_not_compared_with_itself(tmp_path):
  rows = summarise([result("plain", 0.3), result("static", 0.9, 1), result("adapted", 0.9, 1, note="serves static")])
  write_report(tmp_path, rows, {})
  tile = re.search(r'<div class="tile">.*?</div>', (tmp_path / "report.html").read_text()).group()
  assert "serves: <b>static</b>" in tile and "against plain score, the best other row" in tile
