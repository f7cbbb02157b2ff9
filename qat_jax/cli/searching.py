"""The commands rank, serve and learn: search with an adapter, and what the marks of searches teach it."""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from qat_jax.cli.flags import add_adapter, add_cluster, add_command, add_gallery, add_query_type, place


def add_rank(commands: argparse._SubParsersAction) -> None:
  """Adds the command rank."""
  parser = add_command(
    commands,
    "rank",
    "Write the adapted ranking of every query to a Parquet file.",
    (
      "qat-jax rank --adapter runs/mine --queries queries --gallery gallery --out ranking.parquet",
      "qat-jax rank --adapter runs/mine --queries queries.npy --query-type text --gallery gallery --k 10 \\\n"
      "    --shortlist shortlist.parquet --out ranking.parquet",
    ),
    _rank,
  )
  add_adapter(parser, required=False)
  text = "frozen query features: a .npy file or a feature folder"
  parser.add_argument("--queries", metavar="PATH", required=True, help=text)
  add_gallery(parser)
  text = "items to rank: a table with query_id and item_id, or .npy with positions; by default all items"
  parser.add_argument("--shortlist", metavar="FILE", help=text)
  parser.add_argument("--k", metavar="N", type=int, default=100, help="items to keep for each query")
  add_query_type(parser)
  text = "queries ranked at once, which is also the most that a killed run loses"
  parser.add_argument("--block", metavar="N", type=int, default=64, help=text)
  parser.add_argument("--out", metavar="FILE", type=place, required=True, help="the Parquet file to write")
  text = "a metadata column, such as picture: the best groups of items, each by its best item (docs/tiles.md); or "
  text += "duplicates, for which no column is needed (docs/duplicates.md)"
  parser.add_argument("--group", metavar="COLUMN", help=text)
  text = "from 0 to 1: how much items shall differ from those before them (docs/duplicates.md)"
  parser.add_argument("--diversity", metavar="SHARE", type=float, default=0.0, help=text)
  text = "write how likely each item is to be what its query looks for (docs/evidence.md)"
  parser.add_argument("--evidence", action="store_true", help=text)
  text = "leave out what is less likely than this share of false alarms allows, such as 0.1"
  parser.add_argument("--alarms", metavar="SHARE", type=float, help=text)
  add_cluster(parser)
  words = parser.add_argument_group("words and marks", "Queries told in words need no adapter (docs/words.md).")
  words.add_argument("--alike", metavar="ASPECT", action="append", help="an aspect that alone counts, such as colour")
  words.add_argument("--ignore", metavar="ASPECT", action="append", help="an aspect that does not count, such as scene")
  words.add_argument("--change", metavar="WORDS", help='what to put in place of the query\'s own, such as "blue"')
  words.add_argument("--aspects", metavar="FILE", help="aspects, {name: [phrases]}; by default the package's own")
  words.add_argument("--encoder", metavar="NAME", help="the encoder of the words; by default the gallery's own")
  text = "items that were marked as right: Parquet, CSV, … with query_id and item_id (docs/marks.md)"
  words.add_argument("--right", metavar="FILE", help=text)


def add_serve(commands: argparse._SubParsersAction) -> None:
  """Adds the command serve."""
  parser = add_command(
    commands,
    "serve",
    "Serve search of pictures, with a page for the browser.",
    (
      "qat-jax serve PICTURES",
      "qat-jax serve PICTURES --encoder openai/clip-vit-base-patch16 --watch",
      "qat-jax serve --adapter runs/mine --gallery features --images PICTURES",
      "QAT_JAX_API_KEY=secret qat-jax serve --adapter runs/mine --gallery features --host 0.0.0.0",
      "qat-jax serve --adapter runs/mine --gallery shard0 shard1 --cluster auto --replicas 2",
    ),
    _serve,
  )
  parser.description = (
    f"{parser.description} New pictures are encoded while those that are encoded already are searched.\n"
    "Every request must carry the key in QAT_JAX_API_KEY, if it is set; those that change the collection the key in "
    "QAT_JAX_WRITE_KEY."
  )
  _add_collection(parser)
  add_adapter(parser, required=False)
  text = "a feature folder of the items to search; with --cluster several, one for each shard"
  parser.add_argument("--gallery", metavar="FOLDER", nargs="+", help=text)
  add_cluster(parser)
  text = "how many workers of a cluster hold each shard, so that one may be lost"
  parser.add_argument("--replicas", metavar="N", type=int, default=1, help=text)
  text = "workers of a cluster read their shards from the disk at each search, instead of holding them"
  parser.add_argument("--on-disk", action="store_true", help=text)
  parser.add_argument("--images", metavar="FOLDER", help="the gallery's pictures, named by image_path or by id")
  text = "the encoder of queries; by default the gallery's own; none: search by items and vectors only"
  parser.add_argument("--encoder", metavar="NAME", help=text)
  text = "exact, or scann or faiss for a shortlist that is then ranked exactly"
  parser.add_argument("--index", metavar="NAME", default="exact", help=text)
  text = "where to write a gallery that the adapter maps; by default in the gallery's folder"
  parser.add_argument("--prepared", metavar="FOLDER", help=text)
  text = "aspects that searches may name, {name: [phrases]}; else aspects.json beside the adapter, or the package's"
  parser.add_argument("--aspects", metavar="FILE", help=text)
  text = "append the marks of searches to this folder, with query and item, nothing about who marked"
  parser.add_argument("--keep-marks", metavar="FOLDER", help=text)
  text = "start without comparing the features with their checksums"
  parser.add_argument("--no-verify", dest="verify", action="store_false", help=text)
  text = "the address to listen on; one that other machines reach needs a key"
  parser.add_argument("--host", metavar="ADDRESS", default="127.0.0.1", help=text)
  parser.add_argument("--port", metavar="N", type=int, default=8000, help="the port to listen on")
  text = "a further name of this server; may be given more than once"
  parser.add_argument("--name", metavar="HOST", action="append", default=[], help=text)
  text = "a site whose pages may send requests, such as https://example.org; may be given more than once"
  parser.add_argument("--origin", metavar="URL", action="append", default=[], help=text)
  parser.add_argument(
    "--rate", metavar="N", type=float, default=0.0, help="requests per second and client; 0: no limit"
  )
  parser.add_argument("--waiting", metavar="N", type=int, default=256, help="requests that may wait")
  parser.add_argument("--body-bytes", metavar="N", type=int, default=16 << 20, help="most bytes of a request")
  parser.add_argument("--image-pixels", metavar="N", type=int, default=40_000_000, help="most pixels of a picture sent")
  parser.add_argument("--max-k", metavar="N", type=int, default=1000, help="most results of a search")


def _add_collection(parser: argparse.ArgumentParser) -> None:
  """Adds PICTURES and the flags of a collection."""
  text = "a folder of pictures, tar shards, Parquet files or a feature folder: a collection that may change"
  parser.add_argument("pictures", metavar="PICTURES", nargs="?", help=text)
  text = "where to keep what is made of PICTURES; by default .qat-jax beside them"
  parser.add_argument("--data", metavar="FOLDER", type=place, help=text)
  parser.add_argument("--watch", action="store_true", help="follow PICTURES: what comes, changes, moves or goes there")
  text = "learn from PICTURES in the background, and serve what was learnt when it is better"
  parser.add_argument("--learn", action="store_true", help=text)
  text = "other processes may serve PICTURES too: one writes, the others follow, and one of them takes its place"
  parser.add_argument("--share", action="store_true", help=text)


def add_learn(commands: argparse._SubParsersAction) -> None:
  """Adds the command learn."""
  parser = add_command(
    commands,
    "learn",
    "Write an adapter that has learned from the marks that `serve --keep-marks` kept.",
    ("qat-jax learn --marks marks --adapter runs/mine --gallery gallery runs/mine-marked",),
    _learn,
  )
  parser.description = (
    f"{parser.description}\nMarks are kept only where others of the same query gain and other queries do not lose "
    "(docs/marks.md)."
  )
  parser.add_argument("--marks", metavar="FOLDER", required=True, help="the folder of --keep-marks")
  add_adapter(parser)
  add_gallery(parser)
  text = "the retrieval set that the adapter was validated on; by default the run's own"
  parser.add_argument("--data", metavar="ROOT", help=text)
  parser.add_argument("out", metavar="OUT", type=place, help="the folder for the new adapter")


def _learn(marks: str, adapter: str, gallery: str, data: str | None, out: str) -> str:
  from qat_jax.adapter import load
  from qat_jax.features.retrieval_set import RetrievalSet
  from qat_jax.features.store import FeatureStore
  from qat_jax.fit.learning import learn
  from qat_jax.keeping import read_marks

  if not Path(marks).is_dir():
    raise FileNotFoundError(f"no folder {marks}; give the one that `qat-jax serve --keep-marks` writes to")
  model = load(adapter)
  root = data or model.info.get("config", {}).get("data", {}).get("root") or Path(adapter) / "features"
  if not Path(root).is_dir():
    raise FileNotFoundError(f"no retrieval set in {root}; say where the adapter's validation queries are: --data ROOT")
  store, val = FeatureStore.open(gallery, "img"), RetrievalSet.open(root).split("val")
  taught, accounts = learn(model, read_marks(marks), store, val)
  told = "; ".join(f"{name} queries: {account}" for name, account in accounts.items())
  if taught is model:
    raise ValueError(f"{out} is not written. {told}")
  taught.save(out)
  return f"the adapter is in {out}. {told}"


def add_migrate(commands: argparse._SubParsersAction) -> None:
  """Adds the command migrate."""
  parser = add_command(
    commands,
    "migrate",
    "Move a served collection to another encoder, searchable at once.",
    ("qat-jax migrate PICTURES --encoder google/siglip2-base-patch16-512",),
    _migrate,
  )
  parser.description = (
    "A share of the pictures is encoded by both encoders. A map learnt from these places all others until "
    "`qat-jax serve` has encoded them anew; the line printed says what share of a full re-encoding it reaches."
  )
  parser.add_argument("pictures", metavar="PICTURES", help="what was served")
  parser.add_argument("--encoder", metavar="NAME", required=True, help="the new encoder")
  parser.add_argument("--old", metavar="NAME", help="the encoder to come from, where there are several")
  parser.add_argument("--data", metavar="FOLDER", help="as qat-jax serve has it; by default .qat-jax beside PICTURES")
  parser.add_argument("--share", metavar="SHARE", type=float, default=0.05, help="of the pictures, encoded by both")


def _migrate(**flags: object) -> str:
  from qat_jax.serve.migration import migrate_pictures

  return migrate_pictures(**flags)  # type: ignore[arg-type]


def _rank(**flags: object) -> str:
  told = {name: flags.pop(name) for name in ("alike", "ignore", "change", "aspects", "encoder", "right")}
  if any(told[name] for name in ("alike", "ignore", "change", "right")):
    if flags.pop("shortlist") or flags.pop("cluster") != "local":
      raise ValueError("--shortlist and --cluster do not go with words and marks; leave them out")
    flags.pop("block")
    if flags.pop("evidence") or flags.pop("alarms") is not None:
      raise ValueError("--evidence and --alarms are of an adapter's own scores; leave words and marks out")
    from qat_jax.serve.refined import rank_refined

    told |= {name: told[name] or () for name in ("alike", "ignore")}
    return f"rankings are in {rank_refined(**flags, **told)}"  # type: ignore[arg-type]
  if told["aspects"] or told["encoder"]:
    raise ValueError("--aspects and --encoder go with --alike, --ignore or --change; name an aspect")
  if flags["adapter"] is None:
    raise ValueError("--adapter is missing; give a run's folder, or rank by words: --alike, --ignore or --change")
  from qat_jax.serve.batch import rerank_files

  return f"rankings are in {rerank_files(**flags)}"  # type: ignore[arg-type]


def _serve(host: str, port: int, name: list[str], origin: list[str], max_k: int, **settings: Any) -> str:
  from qat_jax.serve.limits import Limits
  from qat_jax.serve.opening import Settings
  from qat_jax.serve.places import Place
  from qat_jax.serve.web.server import serve

  limits = Limits(k=max_k, **{one: settings.pop(one) for one in ("rate", "waiting", "body_bytes", "image_pixels")})
  served: Settings | Place
  if settings["pictures"] is None:
    of_a_collection = [settings.pop(flag) for flag in ("pictures", "data", "watch", "learn", "share")]
    if missing := [f"--{flag}" for flag in ("adapter", "gallery") if settings[flag] is None]:
      raise ValueError(f"{' and '.join(missing)} is missing; give PICTURES, or an adapter and a gallery")
    if any(of_a_collection):
      raise ValueError("--data, --watch, --learn and --share are for a collection; give PICTURES")
    served = Settings(**{**settings, "gallery": tuple(settings["gallery"])})
  else:
    defaults = {field.name: field.default for field in dataclasses.fields(Settings)}
    frozen = ("gallery", "prepared", "cluster", "replicas", "on_disk")
    if any(settings.pop(name) not in (None, defaults[name]) for name in frozen):
      flags = ", ".join(f"--{name.replace('_', '-')}" for name in frozen)
      raise ValueError(f"{flags} are for a gallery that does not change; leave out PICTURES")
    settings.pop("verify")  # a collection always is
    served = Place(**settings)
  serve(served, limits, host, port, tuple(name), tuple(origin))
  return "stopped"
