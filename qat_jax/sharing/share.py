"""An adapter as a folder of its own that can be given away: exported with its model card, sent to the hub.

The folder holds what `load` reads, README.md (the card) and config.json; with `stablehlo`, also each head as a program
from query to folded query, for servers without Python.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.export
import jax.numpy as jnp

from qat_jax.adaptation import fold
from qat_jax.adapter import Adapter, load, write_exported
from qat_jax.models.head_files import FILES
from qat_jax.sharing import hub
from qat_jax.stages import differences, lock, write_whole

FORMATS = ("adapter", "stablehlo")
PROGRAMS = "*.stablehlo"
LOCATIONS = "jax_traceback_in_locations_limit"  # how many places of the code an operation of a program names
SENT = (*FILES, "config.json", "README.md", PROGRAMS)


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
  are kept in float32. The format "stablehlo" adds programs for `queries` queries at once. Raises what `load` raises,
  and ValueError for a dtype where the source is no released checkpoint.
  """
  if format_ not in FORMATS or queries < 1:
    raise ValueError(f"the format is {format_!r}, for {queries} queries; wanted one of {FORMATS}, at least 1 query")
  adapter = load(source, revision)
  if dtype is not None:
    for name, head in adapter.heads.items():
      if head.form != "released":
        raise ValueError(f"{source} has the form {head.form!r} for {name} queries: it is no released checkpoint")
    heads = {n: dataclasses.replace(h, settings=h.settings | {"dtype": dtype}) for n, h in adapter.heads.items()}
    adapter = Adapter(adapter.width, heads, adapter.info)
  report, place = report_of(source, adapter), pathlib.Path(folder).resolve()
  with lock(place):
    for left in place.glob(PROGRAMS):
      left.unlink()
    programs = functools.partial(write_programs, adapter, place, queries)
    write_exported(adapter, place, report, license_, programs if format_ == "stablehlo" else dict)
  return adapter


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


def write_programs(adapter: Adapter, folder: pathlib.Path, queries: int) -> dict[str, Any]:
  """Writes each head as StableHLO (portable bytecode, `text.stablehlo`): queries (float32, QD) → folded queries.

  Returns what config.json says of them: names and shapes. The weights are in a program. It is lowered for CPUs, and
  holds no call to a library of a platform.
  """
  about: dict[str, Any] = {}
  for name, head in adapter.heads.items():
    module = head.module(adapter.width)

    def folded(query_QD: jax.Array, module: Any = module, variables: Any = head.variables) -> jax.Array:
      return fold(module.apply(variables, query_QD))

    example = jax.ShapeDtypeStruct((queries, adapter.width), jnp.float32)
    with _without_places():
      program = jax.export.export(jax.jit(folded), platforms=["cpu"])(example)
    if "custom_call" in program.mlir_module():
      raise ValueError(f"the head for {name} queries calls a library of the platform; export the adapter alone")
    write_whole(folder / f"{name}.stablehlo", program.mlir_module_serialized)
    shapes = {"input": [queries, adapter.width], "output": list(program.out_avals[0].shape), "dtype": "float32"}
    about[name] = {"file": f"{name}.stablehlo", "gallery": head.space, **shapes}
  return {"stablehlo": about}


@contextlib.contextmanager
def _without_places() -> Iterator[None]:
  """Keeps out of programs where their operations were written: paths of this machine, and lines that change."""
  before = getattr(jax.config, LOCATIONS)
  jax.config.update(LOCATIONS, 0)
  try:
    yield
  finally:
    jax.config.update(LOCATIONS, before)


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
