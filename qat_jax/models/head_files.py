"""The heads of an adapter on disk: adapter.json and one file of parameters, or a released checkpoint's two files.

adapter.json (width, forms, settings, provenance, the parameters' checksum) is written last, whole, so a kill at any
moment leaves the adapter that was there before, or the new one.
"""

import dataclasses
import functools
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from qat_jax.models import checkpoints
from qat_jax.models import quari as released
from qat_jax.models import quari_files as released_files
from qat_jax.models.head import Head, read_variables, write_variables
from qat_jax.sealed import check_format, record_in, write_record
from qat_jax.stages import checksum
from qat_jax.types import QUERY_TYPES

FORMAT = 2  # of the folder; 1 had its parameters in a folder that orbax wrote
FILES = ("adapter.json", "params-*.safetensors")  # patterns of what is read
ENTRIES = {"format", "width", "heads", "parameters", "info", "planted"}
PLANTED = "planted"  # of the arrays that are no head's
WIDEST = 1 << 20  # features: more is damage

Trees = dict[str, dict[str, Any]]
Contents = tuple[int, dict[str, Head], dict[str, Any], Trees]  # width, heads, info, planted arrays, by query type


def write(
  folder: pathlib.Path,
  width: int,
  heads: Mapping[str, Head],
  info: Mapping[str, Any],
  planted: Mapping[str, Mapping[str, Any]],
) -> None:
  """Writes heads and planted queries to a folder, whole or not at all; those that were there are replaced."""
  entries: dict[str, dict] = {}
  for name, head in heads.items():
    same = next((other for other in entries if heads[other].fingerprint == head.fingerprint), name)
    entries[name] = {"form": head.form, "settings": head.settings, "variables": same}
  trees = {name: heads[name].variables for name in entries if entries[name]["variables"] == name}
  counted = ("query", "own", "rival")
  shapes = {name: [len(tree[array]) for array in counted if array in tree] for name, tree in planted.items()}
  parameters = write_variables(folder, trees | ({PLANTED: dict(planted)} if planted else {}))
  about = {"format": FORMAT, "width": width, "heads": entries, "parameters": parameters, "info": dict(info)}
  if planted:
    about[PLANTED] = shapes
  write_record(folder / "adapter.json", about)
  for left in folder.glob("params-*.safetensors"):
    if parameters is None or left.name != parameters["file"]:
      left.unlink()
  shutil.rmtree(folder / "params", ignore_errors=True)  # of format 1


def read_heads(folder: pathlib.Path) -> Contents:
  """Returns what `write` was given; raises ValueError where it is damaged, of a later format, or does not fit."""
  text = (folder / "adapter.json").read_bytes()
  try:
    return _read(folder, text)
  except ValueError:
    if (folder / "adapter.json").read_bytes() == text:
      raise
  return read_heads(folder)  # somebody wrote other heads while we read


def read_released(folder: pathlib.Path, source: str) -> Contents:
  """Returns the one head of a released QuARI checkpoint, for both query types; `source` is where it is from, in words.

  Raises FileNotFoundError where one of its files is missing, ValueError where it is damaged.
  """
  for name in released_files.FILES:
    if not (folder / name).exists():
      raise FileNotFoundError(
        f"{folder} lacks {name}; a released checkpoint has {released_files.FILES}: fetch it again"
      )
  config = released_files.read_config(folder / "config.yml")
  variables = released.variables(released_files.read_weights(folder / "weights.pt"), config)
  head = Head("released", released.settings(config), variables)
  checksums = {name: checksum(folder / name) for name in released_files.FILES}
  info = {"encoder": config.feature_extractor, "source": source, "checksums": checksums}
  return config.embedding_dim, dict.fromkeys(QUERY_TYPES, head), info, {}


def _read(folder: pathlib.Path, text: bytes) -> Contents:
  about = _read_about(folder / "adapter.json", text)
  heads = {name: Head(entry["form"], entry["settings"], {}) for name, entry in about["heads"].items()}
  places = {name: entry.get("variables", name) for name, entry in about["heads"].items()}
  try:
    wanted = {
      place: jax.eval_shape(functools.partial(heads[place].initialise, about["width"]))
      for place in dict.fromkeys(places.values())
    }
  except (KeyError, TypeError, ArithmeticError) as error:
    raise ValueError(f"{folder}/adapter.json asks for a form that is not known here ({error}); upgrade") from error
  if about["format"] == 1:
    trained = {name: tree for name, tree in wanted.items() if jax.tree.leaves(tree)}
    trees = wanted | (checkpoints.read_tree(folder / "params", trained) if trained else {})
  else:
    shapes = about.get(PLANTED, {})
    planted = {name: _planted(about["width"], *counts) for name, counts in shapes.items()}
    trees = read_variables(folder, about["parameters"], wanted | ({PLANTED: planted} if planted else {}))
  heads = {name: dataclasses.replace(head, variables=trees[places[name]]) for name, head in heads.items()}
  return about["width"], heads, about["info"], trees.get(PLANTED, {})


def _planted(width: int, queries: int, own: int, rivals: int | None = None) -> dict[str, jax.ShapeDtypeStruct]:
  rows = lambda count: jax.ShapeDtypeStruct((count, width), np.float16)
  beside = {} if rivals is None else {"rival": rows(rivals)}  # adapters of earlier versions have none
  return {"query": rows(queries), "own": rows(own), "owner": jax.ShapeDtypeStruct((own,), np.int32), **beside}


def _read_about(path: pathlib.Path, text: bytes) -> dict[str, Any]:
  try:
    about = record_in(path, text)
    check_format("it", about["format"], FORMAT, "save it again", oldest=1)
    about = {"parameters": None, **about}
    if unknown := about.keys() - ENTRIES:
      raise ValueError(f"it has the entries {sorted(unknown)}, which are not known here")
    kinds = {
      "format": int,
      "width": int,
      "heads": dict,
      "info": dict,
      "parameters": dict if about["parameters"] else None,
    }
    for name, kind in kinds.items():
      if kind and type(about[name]) is not kind:
        raise ValueError(f"its {name} is {str(about[name])[:80]!r}, wanted {kind.__name__}")
    if not 0 < about["width"] <= WIDEST:
      raise ValueError(f"its width is {about['width']}")
    if about["parameters"] is not None and not all(
      type(about["parameters"].get(name)) is str for name in ("file", "checksum")
    ):
      raise ValueError("its parameters have no file and checksum")
    for counts in about.get(PLANTED, {}).values():
      whole = type(counts) is list and len(counts) in (2, 3) and all(type(n) is int for n in counts)
      if not whole or not all(0 <= n <= WIDEST for n in counts) or counts[2:] not in ([], counts[:1]):
        raise ValueError(
          f"its planted queries are {counts!r}, wanted counts of queries, images and, for each query, rivals"
        )
    for name, entry in about["heads"].items():
      if type(entry) is not dict or type(entry.get("form")) is not str or type(entry.get("settings")) is not dict:
        raise ValueError(f"its head for {name!r} has no form or no settings")
      if entry.get("variables", name) not in about["heads"]:
        raise ValueError(f"its head for {name!r} has the variables of another that is not there")
    return about
  except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
    what = f"it has no entry {error}" if isinstance(error, KeyError) else str(error)
    raise ValueError(f"{path} describes no adapter: {what}; save or fetch it again") from error
