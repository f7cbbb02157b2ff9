"""An adapter as a folder of its own that can be given away: exported with its model card, sent to the hub.

The folder holds what `load` reads, README.md (the card) and config.json; where it is asked for, also each head as a
program from query to folded query, for servers without the adapter.
"""

import dataclasses
import fnmatch
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from qat_jax import hub
from qat_jax.adapter import Adapter, load
from qat_jax.models import head_files
from qat_jax.planted import arrays
from qat_jax.sharing import card, programs
from qat_jax.stages import differences, lock, write_json, write_whole

FORMATS = ("adapter", *programs.FORMATS)
SENT = (*head_files.FILES, "config.json", "README.md", *programs.FILES)


def export(
  source: Adapter | str | os.PathLike,
  folder: str | os.PathLike,
  revision: str | None = None,
  dtype: str | None = None,
  license_: str | None = None,
  format_: str = "adapter",
  queries: int = 1,
  report: Mapping[str, Any] | None = None,
) -> Adapter:
  """Writes an adapter to a folder of its own, with a model card and without paths of this machine; returns it.

  Args:
    source: an adapter, or anything that `load` reads.
    folder: where to write; it may hold nothing but an earlier export.
    revision: the revision of a source on the hub.
    dtype: "float32" or "bfloat16", for the matrix products of a released checkpoint. Numbers are kept in float32.
    license_: the licence that the card names.
    format_: "adapter", or a format of `programs.programs_of`, which adds one program for each head.
    queries: the number of queries that a "stablehlo" program takes at once. The other formats take any number.
    report: the metrics.json of an evaluation, for the card's results. By default the one in `source/eval`, if it
      measured this very adapter.

  Raises:
    ValueError: a dtype, but the source is no released checkpoint; also as `load` and `programs_of` raise.
    FileExistsError: the folder holds other files, and no adapter.
  """
  if format_ not in FORMATS or queries < 1:
    raise ValueError(f"the format is {format_!r}, for {queries} queries; wanted one of {FORMATS}, at least 1 query")
  if queries != 1 and format_ != "stablehlo":
    raise ValueError(f"queries is {queries}, which is for the format stablehlo; leave it out for {format_}")
  adapter = source if isinstance(source, Adapter) else load(source, revision)
  if dtype is not None:
    adapter = _with_dtype(adapter, dtype, source)
  if report is None and not isinstance(source, Adapter):
    report = report_of(source, adapter)
  place = pathlib.Path(folder).resolve()
  _check_its_own(place)
  files, about_files = ({}, {}) if format_ == "adapter" else programs.programs_of(adapter, format_, queries)
  about = card.shareable(adapter.info)
  with lock(place):
    # config.json goes first and comes last: where it is, all files are whole and belong to one adapter.
    for left in ("config.json", *programs.FILES):
      (place / left).unlink(missing_ok=True)
    head_files.write(place, adapter.width, adapter.heads, about, arrays(adapter.planted))
    for name, data in files.items():
      write_whole(place / name, data)
    text = card.card(adapter.width, adapter.heads, about, report, license_)
    write_whole(place / "README.md", text.encode())
    write_json(place / "config.json", card.card_config(adapter.width, adapter.heads, about) | about_files)
  return adapter


def _with_dtype(adapter: Adapter, dtype: str, source: object) -> Adapter:
  """Returns the adapter of a released checkpoint with the dtype of its matrix products changed."""
  for name, head in adapter.heads.items():
    if head.form != "released":
      raise ValueError(f"{source} has the form {head.form!r} for {name} queries: it is no released checkpoint")
  heads = {n: dataclasses.replace(h, settings=h.settings | {"dtype": dtype}) for n, h in adapter.heads.items()}
  return Adapter(adapter.width, heads, adapter.info)


def _check_its_own(folder: pathlib.Path) -> None:
  names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
  ours = (*SENT, "LICENSE*", "*.tmp", ".*")
  others = sorted(name for name in names if not any(fnmatch.fnmatch(name, pattern) for pattern in ours))
  if others and "adapter.json" not in names:
    raise FileExistsError(f"{folder} holds {others[:5]} already, and no adapter; export to a folder of its own")


def report_of(source: str | os.PathLike, adapter: Adapter) -> dict[str, Any] | None:
  """Returns the metrics.json of a run's evaluation; None where there is none, or it is of another adapter."""
  path = pathlib.Path(str(source)) / "eval" / "metrics.json"
  if not path.exists():
    return None
  try:
    report = json.loads(path.read_text())
    measured = report["provenance"].get("adapter")
  except (ValueError, KeyError, AttributeError) as error:
    raise ValueError(f"{path} is no report of an evaluation ({error}); run eval.main again") from error
  return None if measured is None or differences(measured, adapter.fingerprint) else report


def push(
  folder: str | os.PathLike, name: str, private: bool = False, message: str | None = None, token: str | None = None
) -> str:
  """Sends an exported adapter to `owner/name` on the Hugging Face hub; returns the address of its page.

  Raises what `load` raises where the folder holds no whole adapter, ValueError where it was not exported, and
  ConnectionError where the hub refuses.
  """
  folder = pathlib.Path(folder)
  adapter = load(folder)
  missing = [file for file in ("adapter.json", "config.json", "README.md") if not (folder / file).exists()]
  if missing:
    raise ValueError(f"{folder} has no {missing[0]}; export the adapter first: qat-jax export RUN FOLDER")
  card = (folder / "README.md").read_text()
  address = f"hf://{hub.repository(name)}"
  if "hf://OWNER/NAME" in card:
    write_whole(folder / "README.md", card.replace("hf://OWNER/NAME", address).encode())
  kinds = " and ".join(adapter.heads)
  return hub.upload(folder, name, SENT, private, message or f"An adapter for {kinds} queries", token)
