"""The report's plots, each a pure function of numbers to an SVG (matplotlib, imported on use), and what it shows."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from eval.methods import METHODS
from eval.report.results import Row
from eval.report.tables import amount, method_name

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

INK, MUTED, LINE = "#1d2530", "#5f6975", "#e3e7ec"
FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, Helvetica, Arial, sans-serif"
GAIN, LOSS = "#15724f", "#b04330"
DASHES = ("-", "--", "-.", ":")
MORE_COLOURS = ("#b3446c", "#5c7a29", "#7a5230", "#3d4f7c", "#a8643c", "#52767a")


class Plot(NamedTuple):
  """An SVG, and what it shows in words, for those who do not see it."""

  shown: str
  svg: str


def colour(method: str, place: int = 0) -> str:
  """Returns the colour of a method, the same in every plot and table; other methods get one by their place."""
  return METHODS[method].colour if method in METHODS else MORE_COLOURS[place % len(MORE_COLOURS)]


def accuracy_against_latency(rows: Sequence[Row]) -> Plot | None:
  """Returns mAP (× 100, with intervals) over milliseconds a query, log scale; None where no row has a time."""
  timed = [(float(r.result.ms_per_query), r) for r in sorted(rows, key=lambda r: r.map.value) if r.result.ms_per_query]
  if not timed:
    return None
  points = [
    f"{method_name(r.result.method)} {100 * r.map.value:.1f} at {amount(r.result.ms_per_query)} ms"
    for r in rows
    if r.result.ms_per_query
  ]
  figure = _figure()
  axes = _style(figure.add_subplot())
  figure.subplots_adjust(right=0.58)
  for place, (time, row) in enumerate(timed):
    value, tint = 100 * row.map.value, colour(row.result.method, place)
    below, above = value - 100 * row.map.low, 100 * row.map.high - value
    axes.errorbar(
      time, value, [[below], [above]], fmt="o", color=tint, markersize=7, elinewidth=1.4,
      markeredgecolor="white", markeredgewidth=1,
    )  # fmt: skip
  axes.set_xscale("log")
  axes.set_xlim(min(time for time, _ in timed) / 2, max(time for time, _ in timed) * 2)
  axes.set_xlabel("milliseconds a query (log scale)")
  axes.set_ylabel("mAP × 100")
  axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
  axes.xaxis.set_minor_formatter(lambda x, _: f"{x:g}" if f"{x:e}"[0] in "25" else "")
  bottom, top = axes.get_ylim()
  heights = _spread([(100 * row.map.value - bottom) / (top - bottom) for _, row in timed], 0.075)
  for place, ((_, row), height) in enumerate(zip(timed, heights, strict=True)):
    text = f"{method_name(row.result.method)}  {100 * row.map.value:.1f}"
    tint = colour(row.result.method, place)
    axes.plot(1.04, height, "o", transform=axes.transAxes, color=tint, markersize=6, clip_on=False)
    axes.text(1.075, height, text, transform=axes.transAxes, va="center", color=INK)
  return Plot(f"mAP × 100 over milliseconds a query: {'; '.join(points)}", _svg(figure))


def wins_and_losses(differences: Sequence[tuple[str, np.ndarray]]) -> Plot | None:
  """Returns a panel for each (name, per-query differences in average precision): sorted, gains and losses in colour."""
  if not differences:
    return None
  words = []
  figure = _figure()
  panels = figure.subplots(1, len(differences), sharey=True, squeeze=False)[0]
  figure.subplots_adjust(wspace=0.2)
  for axes, (name, difference_Q) in zip(panels, differences, strict=True):
    _style(axes)
    difference_Q = 100 * np.sort(difference_Q[~np.isnan(difference_Q)])[::-1]
    place_Q = np.arange(len(difference_Q)) + 0.5
    better, worse = int(np.sum(difference_Q > 0)), int(np.sum(difference_Q < 0))
    words.append(f"against {name} {better:,} queries are better and {worse:,} worse")
    for sign, tint in ((1, GAIN), (-1, LOSS)):
      height_Q = np.where(sign * difference_Q > 0, difference_Q, 0)
      axes.fill_between(place_Q, height_Q, step="mid", color=tint, linewidth=0)
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.set_xlim(0, max(len(difference_Q), 1))
    axes.set_xlabel(f"queries, against {name}")
    even = len(difference_Q) - better - worse
    for line, (text, tint) in enumerate(
      [(f"{better:,} better", GAIN), (f"{even:,} the same", MUTED), (f"{worse:,} worse", LOSS)]
    ):
      axes.text(0.96, 0.93 - 0.075 * line, text, transform=axes.transAxes, ha="right", color=tint)
  panels[0].set_ylabel("gain in average precision × 100")
  return Plot(f"Gain in average precision, query by query: {'; '.join(words)}", _svg(figure))


def curves(lines: Sequence[dict], field: str, label: str, scale: float) -> Plot | None:
  """Returns `field` × scale over `step`, a curve for each `name`; None where no line has the field."""
  series: dict[str, dict[int, float]] = {}
  for line in (line for line in lines if line.get(field) is not None):
    series.setdefault(str(line.get("name", "")), {})[int(line["step"])] = scale * float(line[field])  # a later run wins
  if not series:
    return None
  words = []
  figure = _figure()
  axes = _style(figure.add_subplot())
  for place, (name, points) in enumerate(sorted(series.items())):
    steps = sorted(points)
    method = name.split("/")[-1]
    tint = colour({"adaptive": "adapted"}.get(method, method), place)
    marker = "o" if len(steps) <= 30 else None
    dashes = DASHES[place % len(DASHES)]  # a curve that lies under another is seen between its dashes
    axes.plot(steps, [points[s] for s in steps], dashes, color=tint, linewidth=1.6, marker=marker, markersize=3.5,
              label=name.replace("_", " ").replace("/", ", "))  # fmt: skip
    words.append(f"{name.replace('_', ' ')} from {points[steps[0]]:.3g} to {points[steps[-1]]:.3g}")
  axes.set_xlabel("step")
  axes.set_ylabel(label)
  if any(series):
    axes.legend(frameon=False, labelcolor=INK)
  return Plot(f"{field.replace('val_map', 'mAP × 100 on validation')} by step: {'; '.join(words)}", _svg(figure))


def bars_by_group(groups: Sequence[tuple[str, Sequence[tuple[str, float, float]]]], label: str) -> str:
  """Returns bars side by side for each group: (name, height, error) each; a name has one colour in all groups."""
  names = list(dict.fromkeys(name for _, bars in groups for name, _, _ in bars))
  figure = _figure()
  figure.subplots_adjust(bottom=0.24)
  axes = _style(figure.add_subplot())
  width = 0.8 / max(len(names), 1)
  for place, name in enumerate(names):
    known = [(at, height, error) for at, (_, bars) in enumerate(groups) for n, height, error in bars if n == name]
    at, heights, errors = zip(*known, strict=True)
    left = [x + (place + 0.5) * width - 0.4 for x in at]
    axes.bar(left, heights, width, yerr=errors, color=MORE_COLOURS[place % len(MORE_COLOURS)], label=name, ecolor=INK,
             error_kw={"elinewidth": 0.9})  # fmt: skip
  axes.axhline(0, color=INK, linewidth=0.8)
  axes.set_xticks(range(len(groups)), [name for name, _ in groups])
  axes.set_ylabel(label)
  axes.legend(frameon=False, labelcolor=INK, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.1), fontsize=8)
  return _svg(figure)


def _figure() -> Figure:
  from matplotlib.figure import Figure

  figure = Figure(figsize=(5.4, 3.5))
  figure.subplots_adjust(left=0.13, right=0.96, top=0.97, bottom=0.15)
  return figure


def _style(axes: Axes) -> Axes:
  axes.spines[["top", "right"]].set_visible(False)
  axes.spines[["left", "bottom"]].set_color(LINE)
  axes.tick_params(which="both", color=LINE, labelcolor=MUTED, length=3)
  axes.xaxis.label.set_color(MUTED)
  axes.yaxis.label.set_color(MUTED)
  axes.grid(axis="y", color=LINE, linewidth=0.8)
  axes.set_axisbelow(True)
  return axes


def _spread(heights: Sequence[float], gap: float, top: float = 0.97) -> list[float]:
  """Returns ascending heights moved apart by at least `gap`, none above `top` unless there is no room."""
  spread: list[float] = []
  for height in heights:
    spread.append(max(height, spread[-1] + gap) if spread else height)
  for place in reversed(range(len(spread))):
    spread[place] = min(spread[place], top - gap * (len(spread) - 1 - place))
  return spread


def _svg(figure: Figure) -> str:
  import matplotlib

  buffer = io.StringIO()
  with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "report", "font.sans-serif": ["DejaVu Sans"]}):
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
  return buffer.getvalue().replace("'DejaVu Sans', sans-serif", FONTS)
