"""What others are told about an adapter: a model card, and a config.json for programs that do not know ours.

Both are made from what the adapter itself records and from the report of its evaluation; nothing is claimed that was
not measured.
"""

import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from qat_jax.models.head import Head, name_of
from qat_jax.models.memory import PAIRS

FORMAT = 1  # of config.json
ROWS = {"plain": "plain score", "static": "static map", "adapted": "adapted, whole gallery"}  # of the table of results
KEPT = (*PAIRS, "folded")  # constants of forms that hold a row a training item or query
REMEMBERED = """Each row is made from a training item, or a few. Who has the file can tell whether an item was among
them, and may reconstruct something of it. `--config.memory.text=0 --config.captions.text=0` trains a text head without
pairs."""
USE = """```python
import qat_jax

adapter = qat_jax.load("hf://OWNER/NAME")
gallery = adapter.prepare(gallery_ND, "{query_type}")  # features of the same encoder, a row an item; once
ranking = qat_jax.rank(adapter(query_QD, "{query_type}"), gallery, k=100)
```"""


def card(
  width: int, heads: Mapping[str, Head], info: Mapping[str, Any], report: Mapping[str, Any] | None, license_: str | None
) -> str:
  """Returns the model card (Markdown, with the hub's front matter) of an adapter.

  `report` is the metrics.json of its evaluation, None where there is none; `license_` is for the owner to choose.
  """
  encoder = encoder_of(info)
  sections = {
    "Use": USE.replace("{query_type}", next(iter(heads))),
    "What it is": _what(width, heads, info, encoder),
    "Trained on": _data(info, encoder),
    "Results": _results(info, report),
    "Limits": _limits(heads, encoder),
    "What the files keep of the training data": _kept(width, heads),
  }
  body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items())
  title = f"# Query-adaptive retrieval for features of {encoder or 'one encoder'}"
  return f"{_front(encoder, license_)}\n{title}\n\n{body}\n"


def card_config(width: int, heads: Mapping[str, Head], info: Mapping[str, Any]) -> dict[str, Any]:
  """Returns what config.json says; qat-jax itself reads adapter.json."""
  return {
    "format": FORMAT,
    "library_name": "qat-jax",
    "model_type": "query-adaptive-retrieval",
    "encoder": encoder_of(info),
    "encoder_revision": info.get("revision"),
    "width": width,
    "heads": {name: {"form": head.form, "gallery": head.space} for name, head in heads.items()},
  }


def encoder_of(info: Mapping[str, Any]) -> str | None:
  """Returns the encoder whose features an adapter is for, by what the adapter records; None where nothing says."""
  return info.get("encoder") or info.get("config", {}).get("encoder", {}).get("name") or None


def shareable(info: Mapping[str, Any]) -> dict[str, Any]:
  """Returns an adapter's provenance without where things lay on its machine: of a path, the last part."""

  def clean(value: Any) -> Any:
    if isinstance(value, Mapping):
      return {name: clean(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
      return [clean(part) for part in value]
    if isinstance(value, str) and re.match(r"(/|~|\.\.?/|[A-Za-z]:\\|\\\\|file:)", value):
      return pathlib.PurePath(value.replace("\\", "/").rstrip("/")).name
    return value

  return clean(info)


def _front(encoder: str | None, license_: str | None) -> str:
  lines = ["library_name: qat-jax", "tags: [image-retrieval, query-adaptive-retrieval, embeddings, jax]"]
  if encoder and re.fullmatch(r"[\w.-]+/[\w.-]+", encoder):
    lines.append(f"base_model: {encoder}")
  if license_:
    lines.append(f"license: {license_}")
  return "---\n" + "\n".join(lines) + "\n---\n"


def _what(width: int, heads: Mapping[str, Head], info: Mapping[str, Any], encoder: str | None) -> str:
  lines = [
    f"Frozen features of {encoder or 'the encoder that it was trained with'}, {width} wide, become for each query an "
    "adapted query vector q′ and a linear map T = diag(gate) + left·rightᵀ of the gallery; items z are ranked by "
    "cosine(q′, T z). Made by qat-jax, after QuARI (Xing, Stylianou, Pless, Jacobs, "
    "NeurIPS 2025, arXiv 2505.21647).",
    "",
    "| queries | form | chosen on validation, mAP × 100 | gallery | parameters |",
    "|---|---|---|---|---|",
  ]
  for name, head in heads.items():
    chosen = info.get("chosen", {}).get(name, {})
    values = ", ".join(f"{other} {100 * value:.1f}" for other, value in chosen.get("val_map", {}).items())
    gallery = "as it is" if head.space == "frozen" else "mapped once, by `adapter.prepare`"
    count = sum(np.size(leaf) for leaf in jax.tree.leaves(head.variables))
    form = chosen.get("name", head.form)
    lines.append(f"| {name} | {form} | {values or 'not recorded'} | {gallery} | {count:,} |")
  return "\n".join(lines)


def _data(info: Mapping[str, Any], encoder: str | None) -> str:
  made_from, data = info.get("made_from", {}), info.get("config", {}).get("data", {})
  name = data.get("name") or data.get("source") or data.get("root") or info.get("source")
  lines = [f"- Data: {os.path.basename(str(name).rstrip('/')) if name else 'not recorded'}."]
  if encoder:
    revision = f", revision {info['revision']}" if info.get("revision") else ""
    lines.append(f"- Encoder: {encoder}{revision}, not changed.")
  counts = [f"{entry['rows']:,} {kind}" for kind, entry in made_from.get("train", {}).items() if entry]
  if counts:
    queries = [f"{q['rows']:,} {kind}" for kind, q in made_from.get("val", {}).get("queries", {}).items()]
    lines.append(f"- Training: {', '.join(counts)}. Chosen on {', '.join(queries)} queries for validation.")
  if "versions" in info:
    versions = ", ".join(f"{name} {version}" for name, version in info["versions"].items())
    lines.append(
      f"- Seed {info.get('seed')}, commit {info.get('commit', 'unknown')}, {info.get('hardware')}; {versions}."
    )
  return "\n".join(lines)


def _results(info: Mapping[str, Any], report: Mapping[str, Any] | None) -> str:
  if report is None:
    return "No evaluation of this adapter was found beside it. `python -m eval.main` makes one."
  benchmark = info.get("config", {}).get("benchmark", {}).get("name") or "the test split of its own data"
  lines = [
    f"On {benchmark}: mAP × 100 and recall@1 in per cent, with 95% intervals over queries; the last column is the "
    "paired difference in mAP to the plain score.",
    "",
    "| queries | method | mAP | recall@1 | vs plain |",
    "|---|---|---|---|---|",
  ]
  number = {(row["query"], row["method"], row["metric"]): row for row in report["results"]}
  paired = {(row["query"], row["method"]): row for row in report["differences"] if row["against"] == "plain"}
  for query, method in dict.fromkeys((row["query"], row["method"]) for row in report["results"]):
    if method in ROWS and (query, method, "map") in number:
      cells = [_percent(number.get((query, method, metric))) for metric in ("map", "recall@1")]
      count = number[query, method, "map"]["queries"]
      difference = _percent(paired.get((query, method)), "+")
      lines.append(f"| {query} ({count:,}) | {ROWS[method]} | {' | '.join(cells)} | {difference} |")
  return "\n".join(lines)


def _percent(row: Mapping[str, Any] | None, sign: str = "") -> str:
  if row is None:
    return "–"
  low, high = (f"{100 * x:{sign}.1f}" for x in row["interval"])
  return f"{100 * row['value']:{sign}.1f} [{low}, {high}]"


def _limits(heads: Mapping[str, Head], encoder: str | None) -> str:
  lines = [
    f"- It takes features of {encoder or 'that one encoder'} alone; others of the same width give wrong rankings "
    "without an error.",
    f"- It serves {' and '.join(heads)} queries. What it learned is its training domain; elsewhere it may rank worse "
    "than the plain score. Measure on your own data.",
    "- Intervals are over queries of one trained adapter, not over training anew.",
  ]
  return "\n".join(lines)


def _kept(width: int, heads: Mapping[str, Head]) -> str:
  lines = []
  for name, head in heads.items():
    if kept := list(_memories(width, head)):
      parts = ", ".join(f"{rows:,} rows of {columns} numbers ({what})" for what, rows, columns in kept)
      lines.append(f"- {name} queries: {parts}.")
  if lines:
    return "\n".join([*lines, "", REMEMBERED])
  return (
    "Weights and statistics of the training features (means, scatter, maps) alone; no training item can be read off, "
    "though weights may reveal something of what they were fitted to."
  )


def _memories(width: int, head: Head) -> Iterator[tuple[str, int, int]]:
  """Yields name, rows and columns of the constants that hold a row a training item."""
  for path, leaf in jax.tree_util.tree_leaves_with_path(head.variables.get("constants", {})):
    name, shape = name_of(path), np.shape(leaf)
    if len(shape) == 2 and (name.split("/")[-1] in KEPT or (shape[1] == width and shape[0] not in (1, width))):
      yield name, *shape
