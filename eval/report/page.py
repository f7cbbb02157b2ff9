"""The report of an evaluation: metrics.json, table.md and one report.html that needs no other file.

Everything is made of the rows of `eval.report.results.summarise`; pictures and plots lie in the page as data URIs.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path

from eval.report import plots, words
from eval.report.results import REFERENCES, Estimate, Row, Skipped, best_other, grouped
from eval.report.sheets import Sheet, data_uri
from eval.report.tables import cost_columns, group_name, method_name, metrics_json, percent, table_markdown
from qat_jax.runs import read_metrics
from qat_jax.stages import write_whole

STYLE = Path(__file__).with_name("report.css")  # copied into the page, which needs no other file
SERVES = "serves "  # what the note of the adapter's row begins with, before a candidate's name
SHORT_NOTE = 45  # characters: a longer note stands below the table


def write_report(
  folder: Path | str,
  rows: Sequence[Row],
  provenance: dict,
  title: str = "Query-adaptive retrieval",
  about: str = "",
  sheets: Sequence[Sheet] = (),
  curves: Path | str | None = None,
  main_method: str = "adapted",
  skipped: Sequence[Skipped] = (),
) -> None:
  """Writes metrics.json, table.md and report.html into `folder`, each whole or not at all.

  `about` says what was searched and what serves, a paragraph a line; `curves` is a metrics.jsonl of training, whose
  lines are such as {"step": 100, "name": "text/adaptive", "loss": 1.2, "val_map": 0.19}; `main_method` the one that the
  headline and the win/loss plots are about; `skipped` says which methods were not run.
  """
  folder = Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  lines = read_metrics(curves) if curves else []
  page = html_page(rows, provenance, title, about, sheets, lines, main_method, skipped)
  numbers = json.dumps(metrics_json(rows, provenance, skipped), indent=2, allow_nan=False, default=str) + "\n"
  for name, text in (("metrics.json", numbers), ("table.md", table_markdown(rows)), ("report.html", page)):
    write_whole(folder / name, text.encode())


def gather_curves(candidates: Path, path: Path) -> Path:
  """Writes the metrics of all candidates of a run, one after another, to `path`, and returns it."""
  path.parent.mkdir(parents=True, exist_ok=True)
  write_whole(path, "".join(one.read_text() for one in sorted(candidates.glob("*/*/metrics.jsonl"))).encode())
  return path


def html_page(
  rows: Sequence[Row],
  provenance: dict,
  title: str,
  about: str,
  sheets: Sequence[Sheet],
  lines: Sequence[dict],
  main_method: str,
  skipped: Sequence[Skipped],
) -> str:
  """Returns the whole page; arguments as in `write_report`, `lines` those of the training curves."""
  groups = grouped(rows)
  parts = [
    f"<header><h1>{escape(title)}</h1>"
    + "".join(f"<p>{escape(line)}</p>" for line in about.splitlines())
    + "</header>",
    '<div class="tiles">' + "".join(_tile(group, main_method) for group in groups) + "</div>",
  ]
  for group in groups:
    own = [s for s in sheets if s.query_type == group[0].result.query_type]
    absent = [s for s in skipped if (s.query_type, s.task) == group[0].result.group]
    parts.append(_section(group, own, main_method, absent))
  parts.append(_training(lines))
  parts.append(_reading())
  record = escape(json.dumps(provenance, indent=2, default=str))
  parts.append(
    "<section><details><summary>What made this report</summary>"
    f'<pre tabindex="0" role="region" aria-label="Provenance">{record}</pre></details></section>'
  )
  return (
    f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    f"<style>\n{STYLE.read_text()}</style></head>\n<body><main>\n" + "\n".join(parts) + "\n</main></body></html>\n"
  )


def _tile(group: Sequence[Row], main_method: str) -> str:
  row = _main(group, main_method)
  parts = [
    f'<p class="label">{escape(group_name(group))}</p>',
    f'<p class="figure">{100 * row.map.value:.1f}<small>mAP × 100</small></p>',
  ]
  if row.result.note.startswith(SERVES):
    parts.append(f"<p>serves: <b>{escape(row.result.note.removeprefix(SERVES).replace('_', ' '))}</b></p>")
  other = best_other(group, row)
  if other is not None:
    best, difference = other
    sure = "gain" if difference.low > 0 else "loss" if difference.high < 0 else ""
    name = escape(method_name(best.result.method))
    parts.append(f'<p><span class="{sure}">{_difference(difference)}</span> against {name}, the best other row</p>')
    if row.to_plain is not None and best.result.method != "plain":
      parts.append(f"<p>{_difference(row.to_plain)} against the plain score</p>")
  if row.hit10 is not None:
    plain = next((r for r in group if r.result.method == "plain" and r.hit10 and r is not row), None)
    before = f"{100 * plain.hit10.value:.1f}% → " if plain and plain.hit10 else ""
    parts.append(f"<p>{before}{100 * row.hit10.value:.1f}% of queries have a hit in the first 10</p>")
  parts.append(f'<p class="muted">{escape(method_name(row.result.method))}, {row.queries:,} queries</p>')
  return f'<div class="tile">{"".join(parts)}</div>'


def _section(group: Sequence[Row], sheets: Sequence[Sheet], main_method: str, skipped: Sequence[Skipped]) -> str:
  main = _main(group, main_method)
  others = [r for r in group if r.result.method in REFERENCES and r is not main]
  differences = [(method_name(r.result.method), main.result.ap_Q - r.result.ap_Q) for r in others]
  figures = [
    ("Accuracy against latency", words.latency(group), plots.accuracy_against_latency(group)),
    (
      f"Query by query: {method_name(main.result.method)}",
      words.wins(differences),
      plots.wins_and_losses(differences) if differences else "",
    ),
  ]
  parts = [
    f"<h2>{escape(group_name(group).capitalize())}</h2>",
    _table(group),
    _absent(skipped),
    _own(group),
    _figures(figures),
  ]
  for heading, chosen in (
    ("Gained most", [s for s in sheets if s.gain >= 0 and not s.typical]),
    ("Typical: the queries in the middle", [s for s in sheets if s.typical]),
    ("Lost most", [s for s in sheets if s.gain < 0 and not s.typical]),
  ):
    if chosen:
      parts.append(f"<h3>{heading}</h3>" + "".join(_sheet(s) for s in chosen))
  return "<section>" + "\n".join(parts) + "</section>"


def _table(group: Sequence[Row]) -> str:
  scale = max(r.map.high for r in group) or 1.0
  costs = cost_columns(group)
  hits = ["hit in 10"] if any(row.hit10 for row in group) else []
  head = ["method", "mAP", "95% interval", *hits, "recall@1", "vs plain", "vs static", *(name for name, _ in costs)]
  lines = []
  for place, row in enumerate(group):
    short = row.result.note if len(row.result.note) <= SHORT_NOTE else ""
    note = f"<small>{escape(short)}</small>" if short else ""
    tint = plots.colour(row.result.method, place)
    cells = [
      f'<th scope="row"><div><i style="background:{tint}"></i>'
      f"<span>{escape(method_name(row.result.method))}{note}</span></div></th>",
      f"<td><b>{_with_interval(percent(row.map))}</b></td>",
      f'<td class="range">{_range(row.map, scale, tint)}</td>',
      *(f"<td>{_with_interval(percent(row.hit10))}</td>" for _ in hits),
      f"<td>{_with_interval(percent(row.recall1))}</td>",
      *(f"<td>{_difference(d) if d else '–'}</td>" for d in (row.to_plain, row.to_static)),
      *(f"<td>{texts[place]}</td>" for _, texts in costs),
    ]
    lines.append("<tr>" + "".join(cells) + "</tr>")
  heads = "".join(f'<th scope="col"{" class=range" if h.startswith("95%") else ""}>{h}</th>' for h in head)
  return (
    f"{_scroll('Table of ' + group_name(group))}<table><thead><tr>{heads}</tr></thead>"
    f"<tbody>{''.join(lines)}</tbody></table></div>"
    f'<p class="muted">{group[0].queries:,} queries. Figures × 100 with their 95% bootstrap interval over queries; '
    "differences are paired, query by query, in mAP.</p>" + _notes(group)
  )


def _notes(group: Sequence[Row]) -> str:
  long = [r.result for r in group if len(r.result.note) > SHORT_NOTE]
  lines = "".join(f"<li><b>{escape(method_name(r.method))}</b>: {escape(r.note)}</li>" for r in long)
  return f'<ul class="muted">{lines}</ul>' if lines else ""


def _own(group: Sequence[Row]) -> str:
  """Returns a table of the benchmark's own figures, in its own unit; breakdowns stay in metrics.json."""
  names = list(dict.fromkeys(name for r in group for name in r.result.figures if name.count("/") == 1))
  if not names:
    return ""
  heads = "".join(f'<th scope="col">{escape(name.split("/")[1])}</th>' for name in names)
  lines = []
  for row in group:
    figures = [row.result.figures.get(name, {}).get("value") for name in names]
    cells = "".join(f"<td>{'–' if value is None else f'{value:.4g}'}</td>" for value in figures)
    lines.append(f'<tr><th scope="row">{escape(method_name(row.result.method))}</th>{cells}</tr>')
  return (
    f"<details><summary>The figures of {escape(names[0].split('/')[0])}, in its own unit</summary>"
    f'{_scroll("The figures of " + group_name(group))}<table><thead><tr><th scope="col">method</th>{heads}</tr></thead>'
    f"<tbody>{''.join(lines)}</tbody></table></div></details>"
  )


def _absent(skipped: Sequence[Skipped]) -> str:
  reasons = [f"{escape(method_name(s.method))}: {escape(s.reason)}." for s in skipped]
  return f'<p class="muted">Not run: {" ".join(reasons)}</p>' if reasons else ""


def _range(estimate: Estimate, scale: float, tint: str) -> str:
  left, right, middle = (100 * x / scale for x in (estimate.low, estimate.high, estimate.value))
  label = f"95% interval {100 * estimate.low:.1f} to {100 * estimate.high:.1f}"
  return (
    f'<span class="track" role="img" aria-label="{label}" title="{label}">'
    f'<span style="left:{left:.1f}%;width:{right - left:.1f}%;background:{tint}"></span>'
    f'<b style="left:{middle:.1f}%;background:{tint}"></b></span>'
  )


def _scroll(label: str) -> str:
  """Returns the opening of an area that scrolls sideways, which the keyboard reaches."""
  return f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}">'


def _figures(figures: Sequence[tuple[str, str, str]]) -> str:
  """Returns figures of (heading, what it shows in words, SVG)."""
  drawn = [
    f'<figure><figcaption>{escape(heading)}</figcaption><img alt="{escape(shown)}" src="{_svg_uri(svg)}"></figure>'
    for heading, shown, svg in figures
    if svg
  ]
  return '<div class="figures">' + "".join(drawn) + "</div>" if drawn else ""


def _sheet(sheet: Sheet) -> str:
  if isinstance(sheet.query, str):
    query = f"<blockquote>{escape(sheet.query)}</blockquote>"
  else:
    query = f'<img alt="the query" src="{data_uri(sheet.query)}">'
  rows = []
  for name, pictures in ((sheet.before_name, sheet.before), (sheet.after_name, sheet.after)):
    images = "".join(
      f'<span class="{"relevant" if relevant else "other"}">'
      f'<img alt="{rank}{", relevant" if relevant else ""}" src="{data_uri(picture)}"></span>'
      for rank, (picture, relevant) in enumerate(pictures, start=1)
    )
    rows.append(f'<p class="label">{escape(name)}</p><div class="pictures">{images}</div>')
  return (
    f'<article><div class="query"><p class="label">query</p>{query}<p class="muted">{escape(sheet.title)}</p></div>'
    f"<div>{''.join(rows)}</div></article>"
  )


def _training(lines: Sequence[dict]) -> str:
  figures = _figures(
    [
      ("Training loss", words.curves(lines, "loss", 1), plots.curves(lines, "loss", "loss", 1)),
      ("Validation", words.curves(lines, "val_map", 100), plots.curves(lines, "val_map", "mAP × 100", 100)),
    ]
  )
  return f"<section><h2>Training</h2>{figures}</section>" if figures else ""


def _reading() -> str:
  return (
    "<section><h2>How to read this</h2><p>A query's average precision is the mean, over the gallery items that are "
    "relevant to it, of the precision at each one's rank (a benchmark has a rule of its own); mAP is its mean over "
    "queries. recall@1 is the share of queries whose first item is relevant. An interval says how far the mean would "
    "move had other queries of the same kind been asked. A difference whose interval holds zero shows nothing. In the "
    "rows of pictures a green frame with a tick marks a relevant item.</p></section>"
  )


def _main(group: Sequence[Row], main_method: str) -> Row:
  return next((r for r in group if r.result.method == main_method), max(group, key=lambda r: r.map.value))


def _difference(estimate: Estimate) -> str:
  return _with_interval(percent(estimate, sign=True).replace("-", "−"))


def _with_interval(text: str) -> str:
  value, _, interval = text.partition(" ")
  return f"{value} <small>{interval}</small>" if interval else value


def _svg_uri(svg: str) -> str:
  return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()
