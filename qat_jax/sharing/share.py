"""An adapter as a folder of its own that can be given away: exported with its model card, sent to the hub.

The folder holds what `load` reads, README.md (the card) and config.json; where it is asked for, also each head as a
program from query to folded query, for servers without the adapter.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import os
import pathlib
from typing import Any

from qat_jax.adapter import Adapter, load, write_exported
from qat_jax.models.head_files import FILES
from qat_jax.sharing import hub, programs
from qat_jax.stages import differences, lock, write_whole

FORMATS = ("adapter", *programs.FORMATS)
SENT = (*FILES, "config.json", "README.md", *programs.FILES)


def export(
  source: str | os.PathLike,
  folder: str | os.PathLike,
  revision: str | None = None,
  dtype: str | None = None,
  license_: str | None = None,
  format_: str = "adapter",
  queries: int = 1,
) -> Adapter:
  """Writes the adapter in `source`, which is what `load` takes, to a folder of its own with its card; returns it.

  The card's results are those of `source/eval`, where that is a report of this very adapter; `license_` is what the
  card says of the licence. `dtype` is of a released checkpoint's matrix products: "float32" or "bfloat16"; the numbers
  are kept in float32. A format other than "adapter" adds a program for each head, as `programs.programs_of` says;
  `queries` is how many "stablehlo" takes at once, the others take any number. Raises what `load` and `programs_of`
  raise, ValueError for a dtype where the source is no released checkpoint, and FileExistsError for a folder without an
  adapter that holds something else.
  """
  if format_ not in FORMATS or queries < 1:
    raise ValueError(f"the format is {format_!r}, for {queries} queries; wanted one of {FORMATS}, at least 1 query")
  if queries != 1 and format_ != "stablehlo":
    raise ValueError(f"queries is {queries}, which is for the format stablehlo; leave it out for {format_}")
  adapter = load(source, revision)
  if dtype is not None:
    for name, head in adapter.heads.items():
      if head.form != "released":
        raise ValueError(f"{source} has the form {head.form!r} for {name} queries: it is no released checkpoint")
    heads = {n: dataclasses.replace(h, settings=h.settings | {"dtype": dtype}) for n, h in adapter.heads.items()}
    adapter = Adapter(adapter.width, heads, adapter.info)
  report, place = report_of(source, adapter), pathlib.Path(folder).resolve()
  _check_its_own(place)
  files, about = ({}, {}) if format_ == "adapter" else programs.programs_of(adapter, format_, queries)
  with lock(place):
    for left in programs.FILES:
      (place / left).unlink(missing_ok=True)
    write_exported(adapter, place, report, license_, files, about)
  return adapter


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
  missing = [wanted for wanted in ("adapter.json", "config.json", "README.md") if not (folder / wanted).exists()]
  if missing:
    raise ValueError(f"{folder} has no {missing[0]}; export the adapter first: qat-jax export RUN FOLDER")
  card = (folder / "README.md").read_text()
  address = f"hf://{hub.repository(name)}"
  if "hf://OWNER/NAME" in card:
    write_whole(folder / "README.md", card.replace("hf://OWNER/NAME", address).encode())
  kinds = " and ".join(adapter.heads)
  return hub.upload(folder, name, SENT, private, message or f"An adapter for {kinds} queries", token)
