"""What the campaigns run: every stage on a tiny working set, as its command or as the call beneath it.

A job works in a folder of its own, into which what it reads was copied; `made` says what it left, without times.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import pathlib
import runpy
import shutil
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

import eval.pipeline
import train.pipeline
from qat_jax import cli
from qat_jax.adapter import Adapter, load
from qat_jax.datasets.folder import FolderSource
from qat_jax.encoders import load_encoder
from qat_jax.features import extraction, mining, prepared, splitting
from qat_jax.features.store import FeatureStore, write_features
from qat_jax.models.head import Head
from qat_jax.runs import end_on_signals, explained
from qat_jax.sealed import UNREADABLE
from qat_jax.serve import batch
from qat_jax.sharing import share

IMPORTED = (eval.pipeline, train.pipeline, cli, share, batch, splitting)  # before a child is forked
ROOT = pathlib.Path(__file__).parents[2]
WIDTH, COUNT, SHARD = 8, 32, 8
TIMES = (  # entries of JSON files that tell how long something took, or when
  *("offline_seconds", "seconds", "ms_per_query", "milliseconds_per_query", "speed", "date"),
  *("items_per_second", "encoding_share", "made_from", "hardware", "workdir", "config"),
)
ASIDE = ("tensorboard", "checkpoints", "incomplete")  # folders of work in progress
SHORT = (
  *("form=static", "trained.image=never", "gallery_map=never", "train.batch_size=8", "train.steps=6"),
  *("static_train.steps=6", "validation.every=2", "semi_positives.keep=3", "memory.text=0", "captions.text=0"),
  *("captions.image=0", "levelled.text=0", "levelled.image=0", "validation.queries=8", "forms.query_only.hidden=4"),
)


class Stage(NamedTuple):
  """A stage: what it reads (folders of the material, copied in), and the job, to be run in a folder with them."""

  reads: tuple[str, ...]
  job: Callable[[], object]
  writes: tuple[str, ...]


def program(module: str, *words: str) -> Callable[[], None]:
  """Returns a job that runs a program with its command line."""

  def job() -> None:
    sys.argv = [module, *words]
    if module == "qat_jax.cli":
      cli.main()
    else:
      runpy.run_module(module, run_name="__main__")

  return job


def call(function: Callable[[], object]) -> Callable[[], None]:
  """Returns a job that makes a call as programs make theirs."""

  def job() -> None:
    end_on_signals()
    with explained():
      function()

  return job


def _extract() -> object:
  encoder = load_encoder("toy_clip", 4)
  return extraction.extract(FolderSource("pictures"), encoder, "features", batch_size=4, rows_per_shard=SHARD)


def _mine() -> object:
  settings = {"keep": 3, "neighbours": 10, "temperature": 0.1}
  return mining.ensure(settings, FeatureStore.open("set/train", "img"), "semi_positives.npz")


def _prepare() -> object:
  prepared.ROWS_PER_SHARD = SHARD
  return load("adapter").prepare(FeatureStore.open("set/test/gallery"), "image", "prepared")


def _rank() -> object:
  prepared.ROWS_PER_SHARD = SHARD
  program(
    *("qat_jax.cli", "rank", "--adapter", "adapter", "--queries", "set/test/image_queries", "--gallery"),
    *("set/test/gallery", "--out", "ranking.parquet", "--k", "5", "--block", "8"),
  )()
  return None


RECIPE = ("--config", str(ROOT / "configs/features.py"), "--config.data.root=set", "--workdir", "run")
RECIPE += tuple(f"--config.{line}" for line in SHORT)
STAGES: Mapping[str, Stage] = {  # the quick first: the short form takes those
  "converting": Stage(("released",), program("qat_jax.cli", "convert", "released", "converted"), ("converted",)),
  "export": Stage(
    ("run",), program("qat_jax.cli", "export", "run", "exported", "--format", "stablehlo"), ("exported",)
  ),
  "splitting": Stage(("flat",), program("qat_jax.cli", "split", "flat", "cut", "--val", "0.2"), ("cut",)),
  "preparation": Stage(("set", "adapter"), call(_prepare), ("prepared",)),
  "mining": Stage(("set",), call(_mine), ("semi_positives.npz",)),
  "ranking": Stage(("set", "adapter"), _rank, ("ranking.parquet", "ranking.parquet.gallery")),
  "extraction": Stage(("pictures",), call(_extract), ("features",)),
  "training": Stage(("set",), program("train.main", *RECIPE), ("run",)),
  "evaluation": Stage(
    ("set", "run"), program("eval.main", *RECIPE, '--config.eval.methods=("plain","adapted")'), ("run/eval",)
  ),
}


def material(folder: pathlib.Path) -> None:
  """Makes what the stages read, but for `run`, which is the training's result: pictures, features, adapters."""
  rng = np.random.default_rng(0)
  (folder / "pictures").mkdir(parents=True)
  lines = ["file,caption,instance"]
  for number in range(COUNT):
    picture = Image.fromarray(rng.integers(0, 255, (24, 24, 3), np.uint8))
    picture.save(folder / f"pictures/{number:02d}.png")
    lines.append(f"{number:02d}.png,a toy of kind {number // 2},{number // 2}")
  (folder / "pictures/captions.csv").write_text("\n".join(lines))
  for split in ("train", "val", "test"):
    centres_ND = rng.normal(size=(COUNT, WIDTH))
    places = {"train": ("img", "text")} if split == "train" else {}
    if split != "train":
      places = {f"{split}/gallery": ("img",), f"{split}/image_queries": ("img",), f"{split}/text_queries": ("text",)}
    for place, kinds in places.items():
      noise = {kind: 0.4 * rng.normal(size=(COUNT, WIDTH)) for kind in kinds}
      columns = {"id": [f"{place}-{i}" for i in range(COUNT)], "instance": [f"{split}{i // 2}" for i in range(COUNT)]}
      write_features(
        folder / "set" / place,
        {kind: (centres_ND + x).astype(np.float32) for kind, x in noise.items()},
        columns,
        {"encoder": "toy"},
        SHARD,
      )
  flat = {kind: rng.normal(size=(COUNT, WIDTH)).astype(np.float32) for kind in ("img", "text")}
  about = {"id": [str(i) for i in range(COUNT)], "instance": [str(i // 2) for i in range(COUNT)]}
  write_features(folder / "flat", flat, about, {"encoder": "toy"}, SHARD)
  head = Head("static", {"maps_gallery": True}, {})
  head = dataclasses.replace(head, variables=_moved(head.initialise(WIDTH), rng.normal(size=(WIDTH, WIDTH))))
  Adapter(WIDTH, {"image": head, "text": head}, {"encoder": "toy", "revision": None}).save(folder / "adapter")
  shutil.copytree(ROOT / "tests/data/reference_vectors/anchored", folder / "released")


def _moved(tree: Any, kernel: np.ndarray) -> Any:
  if isinstance(tree, Mapping):
    return {name: _moved(value, kernel) for name, value in tree.items()}
  return np.asarray(tree + (0.1 * kernel if np.shape(tree) == kernel.shape else 0), np.float32)


def made(folder: pathlib.Path, stage: Stage, working: bool = False) -> dict[str, str]:
  """Returns a digest of every file that a stage wrote, by its path and without times; of work in progress if asked."""
  found = {}
  for place in stage.writes:
    whole = [folder / place] if (folder / place).is_file() else sorted((folder / place).rglob("*"))
    for path in whole:
      name = path.relative_to(folder).as_posix()
      aside = any(part in ASIDE or part.endswith(".parts") for part in path.relative_to(folder).parts)
      if path.is_file() and (working or not aside) and path.name not in (".lock", "metrics.jsonl", "curves.jsonl"):
        found[name] = digest(path)
  return found


def digest(path: pathlib.Path) -> str:
  """Returns a digest of what a file holds, without how long things took; of its bytes where it is damaged."""
  data = path.read_bytes()
  with contextlib.suppress(*UNREADABLE):
    data = _without_times(path.suffix, data)
  return hashlib.blake2b(data, digest_size=8).hexdigest()


def _without_times(suffix: str, data: bytes) -> bytes:
  if suffix == ".json":
    content = json.loads(data)
    if isinstance(content, dict):
      content.pop("checksum", None)  # which is of the times too
    return json.dumps(_timeless(content), sort_keys=True).encode()
  if suffix == ".npz":
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
      arrays = {name: file[name] for name in sorted(file.files)}
    about = json.dumps(_timeless(json.loads(str(arrays.pop("about", "{}")))), sort_keys=True)
    return about.encode() + b"".join(name.encode() + array.tobytes() for name, array in arrays.items())
  if suffix in (".html", ".svg", ".md", ".csv", ".tex"):  # of a report: figures are in metrics.json
    return b""
  return data


def _timeless(tree: Any) -> Any:
  if isinstance(tree, dict):
    return {name: _timeless(value) for name, value in tree.items() if name not in TIMES}
  if isinstance(tree, list):
    return [_timeless(value) for value in tree]
  return tree
