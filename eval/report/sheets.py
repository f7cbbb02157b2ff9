"""Contact sheets: a query's ranking before and after, as rows of pictures with the relevant ones framed."""

import base64
import io
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from eval.report.results import Result
from qat_jax.features.store import FeatureStore
from qat_jax.types import Relevance

INK, MUTED, GAIN, LINE = "#1d2530", "#5f6975", "#15724f", "#e3e7ec"
NO_BREAK = "\N{NO-BREAK SPACE}"


@dataclass(frozen=True)
class Sheet:
  """One query and the first items that two methods gave it; a picture comes with whether it is relevant."""

  query: Image.Image | str
  before: list[tuple[Image.Image, bool]]
  after: list[tuple[Image.Image, bool]]
  title: str
  query_type: str = ""
  gain: float = 0.0  # of average precision, a fraction
  before_name: str = "plain"
  after_name: str = "adapted"
  task: str = ""
  typical: bool = False  # neither of those that gained most nor of those that lost most


def chosen(
  before_Q: np.ndarray, after_Q: np.ndarray, name_of: Callable[[int], str], count: int = 4
) -> list[tuple[int, bool]]:
  """Returns queries to show, each with whether it is typical: those that changed most, and those of middling gain.

  Queries of one name, such as a caption that several images have, are shown once.
  """
  gain_Q = np.asarray(after_Q) - np.asarray(before_Q)
  counted = np.flatnonzero(~np.isnan(gain_Q))
  order = counted[np.argsort(-gain_Q[counted], kind="stable")]
  middle = order[np.argsort(np.abs(np.arange(len(order)) - (len(order) - 1) / 2), kind="stable")]
  seen: set[str] = set()

  def first(queries: np.ndarray, most: int) -> list[int]:
    first_ones: list[int] = []
    for query in map(int, queries):
      if len(first_ones) < most and (name := name_of(query)) not in seen:
        seen.add(name)
        first_ones.append(query)
    return first_ones

  gained = first(order[gain_Q[order] > 0], count)
  lost = first(order[::-1][gain_Q[order[::-1]] < 0], count)
  return [(q, False) for q in gained] + [(q, True) for q in first(middle, count // 2)] + [(q, False) for q in lost]


def build_sheets(
  before: Result,
  after: Result,
  relevance: Relevance,
  query_of: Callable[[int], Image.Image | str],
  picture_of: Callable[[int], Image.Image],
  shown: int = 8,
  count: int = 4,
) -> list[Sheet]:
  """Returns sheets of the queries that changed most from one result to the other, and of typical ones.

  `query_of(q)` gives a query's text or picture, `picture_of(n)` that of a gallery position. Ignored items are not
  shown. Raises ValueError where a result has not kept the first items of its ranking.
  """
  if before.ids_QK is None or after.ids_QK is None:
    raise ValueError(f"{before.method} or {after.method} has no ids_QK; give results that hold their first items")

  def row(ids_K: np.ndarray, query: int) -> list[tuple[Image.Image, bool]]:
    positives, ignored = set(relevance.positives[query].tolist()), set(relevance.ignored[query].tolist())
    counted = [n for n in ids_K[: shown + len(ignored)].tolist() if n >= 0 and n not in ignored][:shown]
    return [(picture_of(n), n in positives) for n in counted]

  def name(query: int) -> str:
    shown = query_of(query) if after.query_type == "text" else query
    return str(shown)

  return [
    Sheet(
      query=query_of(query),
      before=row(before.ids_QK[query], query),
      after=row(after.ids_QK[query], query),
      title="average precision "
      + f"{100 * before.ap_Q[query]:.0f} → {100 * after.ap_Q[query]:.0f}".replace(" ", NO_BREAK),
      query_type=after.query_type,
      gain=float(after.ap_Q[query] - before.ap_Q[query]),
      typical=typical,
    )
    for query, typical in chosen(before.ap_Q, after.ap_Q, name, count)
  ]


def pictures_of(store: FeatureStore, source: Sequence[dict]) -> Callable[[int], Image.Image]:
  """Returns what gives the picture of a position in a store; `source` has records with the same ids."""
  from qat_jax.datasets.pictures import decode

  aligned = len(source) == len(store)  # unreadable images are left out of a store

  def picture(position: int) -> Image.Image:
    if aligned:
      return decode(source[position])
    item = store.ids[position]
    return decode(next(source[i] for i in range(len(source)) if source[i]["id"] == item))

  return picture


def data_uri(picture: Image.Image, side: int = 168) -> str:
  """Returns a picture as a square JPEG data URI of `side` pixels, on white where it is not square."""
  buffer = io.BytesIO()
  _square(picture, side).save(buffer, "JPEG", quality=82)
  return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def draw_sheets(sheets: list[Sheet], side: int = 150) -> Image.Image:
  """Returns the sheets as one picture, one below the other, for a README; `side` is that of a picture, in pixels."""
  gap, label, head = side // 12, int(side * 0.62), int(side * 0.3)
  shown = max(len(row) for sheet in sheets for row in (sheet.before, sheet.after))
  width = gap + side + gap + label + shown * (side + gap) + gap
  height = head + 2 * (side + gap) + gap
  canvas = Image.new("RGB", (width, height * len(sheets) + gap), "white")
  draw = ImageDraw.Draw(canvas)
  small, normal = ImageFont.load_default(side * 0.11), ImageFont.load_default(side * 0.125)
  for place, sheet in enumerate(sheets):
    top = place * height + gap
    if place:
      draw.line([(gap, top), (width - gap, top)], fill=LINE, width=2)
    draw.text((gap, top + head / 2), "query", fill=MUTED, font=small, anchor="lm")
    draw.text(
      (gap + side + gap + label, top + head / 2), sheet.title.replace("→", "to"), fill=MUTED, font=small, anchor="lm"
    )
    top += head
    if isinstance(sheet.query, str):
      lines = textwrap.wrap(f"“{sheet.query}”", 17)[:9]
      draw.multiline_text((gap, top), "\n".join(lines), fill=INK, font=normal, spacing=side * 0.05)
    else:
      canvas.paste(_square(sheet.query, side), (gap, top + (side + gap) // 2))
    for name, row in ((sheet.before_name, sheet.before), (sheet.after_name, sheet.after)):
      draw.text((gap + side + label, top + side / 2), name, fill=INK, font=normal, anchor="rm")
      for column, (picture, relevant) in enumerate(row):
        left = gap + side + gap + label + column * (side + gap)
        canvas.paste(_square(picture, side), (left, top))
        box = [left, top, left + side - 1, top + side - 1]
        draw.rectangle(box, outline=GAIN if relevant else LINE, width=side // 25 if relevant else 1)
      top += side + gap
  return canvas


def _square(picture: Image.Image, side: int) -> Image.Image:
  return ImageOps.pad(picture.convert("RGB"), (side, side), Image.Resampling.LANCZOS, color="white")
