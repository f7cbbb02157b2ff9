"""The report of an evaluation: metrics.json, table.md and one report.html that needs no other file.

Everything is made of the rows of `eval.report.results.summarise`; pictures and plots lie in the page as data URIs.
"""

import base64
import json
import string
from collections.abc import Callable, Iterable, Sequence
from html import escape
from pathlib import Path

from eval.report import plots
from eval.report.results import REFERENCES, Estimate, Row, Skipped, best_other, by_group
from eval.report.sheets import Sheet, data_uri
from eval.report.tables import cost_columns, group_name, method_name, metrics_json, percent, table_markdown
from qat_jax.runs import read_metrics
from qat_jax.stages import write_whole

PAGE, STYLE = (Path(__file__).with_name(name) for name in ("page.html", "report.css"))
SERVES = "serves "  # the note of the adapter's row is this and the name of a candidate
SHORT_NOTE = 45  # characters: a longer note stands below the table
HEADINGS: dict[str, Callable[[Sheet], bool]] = {
  "Gained most": lambda sheet: sheet.gain >= 0 and not sheet.typical,
  "Typical: the queries in the middle": lambda sheet: sheet.typical,
  "Lost most": lambda sheet: sheet.gain < 0 and not sheet.typical,
}


def write_report(
  folder: Path | str,
  rows: Sequence[Row],
  provenance: dict,
  about: str = "",
  sheets: Sequence[Sheet] = (),
  curves: Path | str | None = None,
  skipped: Sequence[Skipped] = (),
) -> None:
  """Writes metrics.json, table.md and report.html into `folder`, each whole or not at all.

  Args:
    folder: where the files go.
    rows: those of `summarise`.
    provenance: what made the rows.
    about: what was searched and what serves, a paragraph a line.
    sheets: the contact sheets.
    curves: a metrics.jsonl of training, with lines such as {"step": 100, "name": "text/adaptive", "loss": 1.2}.
    skipped: the methods that were not run.
  """
  folder = Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  page = html_page(rows, provenance, about, sheets, read_metrics(curves) if curves else [], skipped)
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
  about: str,
  sheets: Sequence[Sheet],
  lines: Sequence[dict],
  skipped: Sequence[Skipped],
) -> str:
  """Returns the whole page; arguments as in `write_report`, `lines` those of the training curves."""
  groups = by_group(rows)
  return string.Template(PAGE.read_text()).substitute(
    title="Query-adaptive retrieval",
    style=STYLE.read_text(),
    about="".join(f"<p>{escape(line)}</p>" for line in about.splitlines()),
    tiles="".join(map(_tile, groups)),
    sections="\n".join(_section(group, sheets, skipped) for group in groups),
    training=_training(lines),
    provenance=escape(json.dumps(provenance, indent=2, default=str)),
  )


def _tile(group: Sequence[Row]) -> str:
  row = _main(group)
  parts = [
    f'<p class="label">{escape(group_name(group))}</p>',
    f'<p class="figure">{100 * row.map.value:.1f}<small>mAP × 100</small></p>',
  ]
  if row.result.note.startswith(SERVES):
    parts.append(f"<p>serves: <b>{escape(row.result.note.removeprefix(SERVES).replace('_', ' '))}</b></p>")
  if (other := best_other(group, row)) is not None:
    best, difference = other
    sure = "gain" if difference.low > 0 else "loss" if difference.high < 0 else ""
    parts.append(
      f'<p><span class="{sure}">{_difference(difference)}</span> against {_name(best)}, the best other row</p>'
    )
    if row.to_plain is not None and best.result.method != "plain":
      parts.append(f"<p>{_difference(row.to_plain)} against the plain score</p>")
  if row.hit10 is not None:
    plain = next((r.hit10 for r in group if r.result.method == "plain" and r.hit10 and r is not row), None)
    before = f"{100 * plain.value:.1f}% → " if plain else ""
    parts.append(f"<p>{before}{100 * row.hit10.value:.1f}% of queries have a hit in the first 10</p>")
  parts.append(f'<p class="muted">{_name(row)}, {row.queries:,} queries</p>')
  return f'<div class="tile">{"".join(parts)}</div>'


def _section(group: Sequence[Row], sheets: Sequence[Sheet], skipped: Sequence[Skipped]) -> str:
  main = _main(group)
  others = [r for r in group if r.result.method in REFERENCES and r is not main]
  differences = [(method_name(r.result.method), main.result.ap_Q - r.result.ap_Q) for r in others]
  reasons = [
    f"{escape(method_name(s.method))}: {escape(s.reason)}."
    for s in skipped
    if (s.query_type, s.task) == group[0].result.group
  ]
  parts = [
    f"<h2>{escape(group_name(group).capitalize())}</h2>",
    _figures_of_rows(group),
    f'<p class="muted">Not run: {" ".join(reasons)}</p>' if reasons else "",
    _benchmark(group),
    _figures(
      ("Accuracy against latency", plots.accuracy_against_latency(group)),
      (f"Query by query: {method_name(main.result.method)}", plots.wins_and_losses(differences)),
    ),
  ]
  for heading, belongs in HEADINGS.items():
    drawn = [_sheet(s) for s in sheets if (s.query_type, s.task) == group[0].result.group and belongs(s)]
    parts += [f"<h3>{heading}</h3>", *drawn] if drawn else []
  return "<section>" + "\n".join(parts) + "</section>"


def _figures_of_rows(group: Sequence[Row]) -> str:
  """Returns the table of a group, and below it the notes that are too long for a cell."""
  scale = max(r.map.high for r in group) or 1.0
  costs = cost_columns(group)
  hits = ["hit in 10"] if any(row.hit10 for row in group) else []
  head = ["mAP", "95% interval", *hits, "recall@1", "vs plain", "vs static", *(name for name, _ in costs)]
  lines, long = [], []
  for place, row in enumerate(group):
    note, tint = row.result.note, plots.colour(row.result.method, place)
    if len(note) > SHORT_NOTE:
      long.append(f"<li><b>{_name(row)}</b>: {escape(note)}</li>")
      note = ""
    small = f"<small>{escape(note)}</small>" if note else ""
    name = f'<div><i style="background:{tint}"></i><span>{_name(row)}{small}</span></div>'
    cells = [f"<b>{_with_interval(percent(row.map))}</b>", _range(row.map, scale, tint)]
    cells += [_with_interval(percent(estimate)) for estimate in ([row.hit10] if hits else []) + [row.recall1]]
    cells += [_difference(estimate) if estimate else "–" for estimate in (row.to_plain, row.to_static)]
    lines.append((name, [*cells, *(texts[place] for _, texts in costs)]))
  return (
    _table("Table of " + group_name(group), head, lines)
    + f'<p class="muted">{group[0].queries:,} queries. Figures × 100 with their 95% bootstrap interval over queries; '
    "differences are paired, query by query, in mAP.</p>" + (f'<ul class="muted">{"".join(long)}</ul>' if long else "")
  )


def _benchmark(group: Sequence[Row]) -> str:
  """Returns a table of the benchmark's own figures, in its own unit; breakdowns stay in metrics.json."""
  names = list(dict.fromkeys(name for r in group for name in r.result.figures if name.count("/") == 1))
  if not names:
    return ""
  lines = []
  for row in group:
    figures = [row.result.figures.get(name, {}).get("value") for name in names]
    lines.append((_name(row), ["–" if value is None else f"{value:.4g}" for value in figures]))
  head = [name.split("/")[1] for name in names]
  return (
    f"<details><summary>The figures of {escape(names[0].split('/')[0])}, in its own unit</summary>"
    f"{_table('The figures of ' + group_name(group), head, lines)}</details>"
  )


def _table(label: str, head: Sequence[str], lines: Iterable[tuple[str, Sequence[str]]]) -> str:
  """Returns a table of methods that scrolls sideways, also by keyboard; `lines` hold HTML: a name and its cells."""
  of_range = lambda column: " class=range" if head[column] == "95% interval" else ""
  heads = "".join(f'<th scope="col"{of_range(i)}>{escape(name)}</th>' for i, name in enumerate(head))
  rows = "".join(
    f'<tr><th scope="row">{name}</th>'
    + "".join(f"<td{of_range(i)}>{cell}</td>" for i, cell in enumerate(cells))
    + "</tr>"
    for name, cells in lines
  )
  return (
    f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}"><table>'
    f'<thead><tr><th scope="col">method</th>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'
  )


def _range(estimate: Estimate, scale: float, tint: str) -> str:
  left, right, middle = (100 * x / scale for x in (estimate.low, estimate.high, estimate.value))
  label = f"95% interval {100 * estimate.low:.1f} to {100 * estimate.high:.1f}"
  return (
    f'<span class="track" role="img" aria-label="{label}" title="{label}">'
    f'<span style="left:{left:.1f}%;width:{right - left:.1f}%;background:{tint}"></span>'
    f'<b style="left:{middle:.1f}%;background:{tint}"></b></span>'
  )


def _figures(*figures: tuple[str, plots.Plot | None]) -> str:
  """Returns plots with their headings."""
  uri = lambda svg: "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()
  drawn = [
    f'<figure><figcaption>{escape(heading)}</figcaption><img alt="{escape(plot.shown)}" src="{uri(plot.svg)}"></figure>'
    for heading, plot in figures
    if plot
  ]
  return '<div class="figures">' + "".join(drawn) + "</div>" if drawn else ""


def _sheet(sheet: Sheet) -> str:
  if isinstance(sheet.query, str):
    query = f"<blockquote>{escape(sheet.query)}</blockquote>"
  else:
    query = f'<img alt="the query" src="{data_uri(sheet.query)}">'
  rows = ""
  for name, pictures in ((sheet.before_name, sheet.before), (sheet.after_name, sheet.after)):
    images = "".join(
      f'<span class="{"relevant" if relevant else "other"}">'
      f'<img alt="{rank}{", relevant" if relevant else ""}" src="{data_uri(picture)}"></span>'
      for rank, (picture, relevant) in enumerate(pictures, start=1)
    )
    rows += f'<p class="label">{escape(name)}</p><div class="pictures">{images}</div>'
  return (
    f'<article><div class="query"><p class="label">query</p>{query}<p class="muted">{escape(sheet.title)}</p></div>'
    f"<div>{rows}</div></article>"
  )


def _training(lines: Sequence[dict]) -> str:
  figures = _figures(
    ("Training loss", plots.curves(lines, "loss", "loss", 1)),
    ("Validation", plots.curves(lines, "val_map", "mAP × 100", 100)),
  )
  return f"<section><h2>Training</h2>{figures}</section>" if figures else ""


def _main(group: Sequence[Row]) -> Row:
  """Returns the row that the headline is about: the adapted one, or else the best."""
  return next((r for r in group if r.result.method == "adapted"), max(group, key=lambda r: r.map.value))


def _name(row: Row) -> str:
  return escape(method_name(row.result.method))


def _difference(estimate: Estimate) -> str:
  return _with_interval(percent(estimate, sign=True).replace("-", "−"))


def _with_interval(text: str) -> str:
  value, _, interval = text.partition(" ")
  return f"{value} <small>{interval}</small>" if interval else value
