"""The command `qat-jax`: rank, serve, convert, export, push, extract, split. An error is one line and status 1."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import qat_jax
from qat_jax.runs import end_on_signals, in_one_line


def main(arguments: Sequence[str] | None = None) -> None:
  """Runs the command with the arguments (those of the process if None); ends the process where something is wrong."""
  if arguments is None:
    end_on_signals()
  parser = argparse.ArgumentParser(prog="qat-jax", description="Query-adaptive retrieval with frozen features.")
  parser.add_argument("--version", action="version", version=f"qat-jax {qat_jax.__version__}")
  commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
  for add in (_add_rank, _add_serve, _add_convert, _add_export, _add_push, _add_extract, _add_split):
    add(commands)
  flags = vars(parser.parse_args(arguments))
  run = flags.pop("run")
  try:
    print(run(**flags))
  except (ValueError, TypeError, OSError, KeyError, ImportError) as error:
    sys.exit(f"error: {in_one_line(error)}")


def _place(given: str) -> str:
  if not given:
    raise argparse.ArgumentTypeError("it is empty; give a folder or a file, `.` for the folder you are in")
  return given


def _add_rank(commands: argparse._SubParsersAction) -> None:
  parser = commands.add_parser(
    "rank", help="rank files of features", description="Writes the adapted ranking of every query."
  )
  parser.add_argument("--adapter", required=True, help="a run's folder, or an exported adapter's")
  parser.add_argument("--queries", required=True, help="frozen query features: a .npy file or a feature folder")
  parser.add_argument("--gallery", required=True, help="a feature folder")
  parser.add_argument("--shortlist", help="Parquet with query_id and item_id, or .npy positions; default: everything")
  parser.add_argument("--k", type=int, default=100, help="how many items a query to keep")
  parser.add_argument("--query_type", "--query-type", choices=["text", "image"], help="which head of the adapter")
  parser.add_argument("--block", type=int, default=64, help="queries a step, and what a killed run loses at most")
  parser.add_argument("--out", type=_place, required=True, help="the Parquet file to write")
  _add_cluster(parser)
  parser.set_defaults(run=_rank)


def _add_serve(commands: argparse._SubParsersAction) -> None:
  parser = commands.add_parser(
    "serve",
    help="a search service and its page",
    description="Serves adapted search of a gallery. QAT_JAX_API_KEY, where it is set, is asked of every request.",
  )
  parser.add_argument("--adapter", required=True, help="a run's folder, or an exported adapter's")
  parser.add_argument("--gallery", required=True, help="a feature folder")
  parser.add_argument("--images", help="the folder with the gallery's pictures, named by image_path or by id")
  parser.add_argument("--encoder", help="of queries; default: the gallery's own; none: items and vectors alone")
  parser.add_argument("--index", default="exact", help="exact, or scann or faiss: a shortlist, ranked exactly")
  parser.add_argument("--prepared", help="where a gallery is written that the adapter maps; default: in its folder")
  parser.add_argument("--no-verify", dest="verify", action="store_false", help="start without reading checksums")
  parser.add_argument("--host", default="127.0.0.1", help="what to bind; another machine's reach wants a key")
  parser.add_argument("--port", type=int, default=8000)
  parser.add_argument("--name", action="append", default=[], help="a further name that the server goes by")
  parser.add_argument("--origin", action="append", default=[], help="whose pages may ask, such as https://example.org")
  parser.add_argument("--rate", type=float, default=0.0, help="requests a second and client; 0: any number")
  parser.add_argument("--waiting", type=int, default=256, help="requests that may wait")
  parser.add_argument("--body-bytes", type=int, default=16 << 20, help="of a request, at most")
  parser.add_argument("--image-pixels", type=int, default=40_000_000, help="of a picture that is sent, at most")
  parser.add_argument("--max-k", type=int, default=1000, help="results of a search, at most")
  parser.set_defaults(run=_serve)


def _add_convert(commands: argparse._SubParsersAction) -> None:
  parser = commands.add_parser("convert", help="write a released QuARI checkpoint as an adapter of ours")
  parser.add_argument("source", help="a folder with config.yml and weights.pt, or hf://owner/name")
  parser.add_argument("folder", type=_place, help="where to write the adapter")
  parser.add_argument("--revision", help="of the hub's repository; the newest by default")
  parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of matrix products")
  parser.set_defaults(run=_export)


def _add_export(commands: argparse._SubParsersAction) -> None:
  parser = commands.add_parser("export", help="write a run's adapter to a folder of its own, with its model card")
  parser.add_argument("source", help="a run's folder, or an adapter's")
  parser.add_argument("folder", type=_place, help="where to write the adapter")
  parser.add_argument("--license", dest="license_", help="what the card says of the licence: apache-2.0, …")
  parser.add_argument(
    "--format",
    dest="format_",
    choices=["adapter", "jax", "onnx", "stablehlo"],
    default="adapter",
    help="others: beside it, programs from queries to folded queries (docs/sharing.md)",
  )
  parser.add_argument("--queries", type=int, default=1, help="how many queries at once a stablehlo program takes")
  parser.set_defaults(run=_export)


def _add_push(commands: argparse._SubParsersAction) -> None:
  parser = commands.add_parser("push", help="send an exported adapter to the Hugging Face hub")
  parser.add_argument("folder", help="what `qat-jax export` wrote")
  parser.add_argument("name", help="owner/name on the hub")
  parser.add_argument("--private", action="store_true", help="where the repository is made: for its owner alone")
  parser.add_argument("--message", help="of the commit")
  parser.set_defaults(run=_push)


def _add_extract(commands: argparse._SubParsersAction) -> None:
  parser = commands.add_parser("extract", help="encode pictures, and their captions where most have one")
  parser.add_argument("source", help="a folder of pictures, tar shards (WebDataset) or Parquet files (docs/data.md)")
  parser.add_argument("folder", type=_place, help="where to write the features")
  parser.add_argument("--encoder", required=True, help="a model of the hub, or its folder")
  parser.add_argument("--batch_size", "--batch-size", type=int, default=64, help="pictures encoded at once")
  parser.add_argument("--reuse", metavar="FOLDER", help="features of before; pictures among them are not encoded again")
  _add_cluster(parser)
  parser.set_defaults(run=_extract)


def _add_cluster(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "--cluster", default="local", help="local (this process), auto or ray://HOST:PORT: a Ray cluster (docs/scale.md)"
  )


def _add_split(commands: argparse._SubParsersAction) -> None:
  parser = commands.add_parser(
    "split",
    help="make a retrieval set of a folder of features",
    description="Every instance goes, whole, to train, val or test. Captions and images with another view are queries.",
  )
  parser.add_argument("source", help="a feature folder with img_emb/ and, for text queries, text_emb/ (docs/data.md)")
  parser.add_argument("root", type=_place, help="where to write the retrieval set")
  parser.add_argument("--by", metavar="COLUMN", help="what says which images show the same thing; default: instance")
  parser.add_argument("--val", type=float, default=0.1, help="the share of instances to choose on (0.1)")
  parser.add_argument("--test", type=float, default=0.1, help="the share of instances to measure on (0.1)")
  parser.add_argument("--seed", type=int, default=0, help="another one gives another split")
  parser.set_defaults(run=_split)


def _rank(**flags: object) -> str:
  from qat_jax.serve.batch import rerank_files

  return f"rankings are in {rerank_files(**flags)}"  # type: ignore[arg-type]


def _serve(
  host: str,
  port: int,
  name: list[str],
  origin: list[str],
  rate: float,
  waiting: int,
  body_bytes: int,
  image_pixels: int,
  max_k: int,
  **settings: object,
) -> str:
  from qat_jax.serve.limits import Limits
  from qat_jax.serve.opening import Settings
  from qat_jax.serve.web.server import serve

  limits = Limits(rate=rate, waiting=waiting, body_bytes=body_bytes, image_pixels=image_pixels, k=max_k)
  serve(Settings(**settings), limits, host, port, tuple(name), tuple(origin))  # type: ignore[arg-type]
  return "stopped"


def _export(source: str, folder: str, **flags: object) -> str:
  from qat_jax.sharing.share import export

  adapter = export(source, folder, **flags)  # type: ignore[arg-type]
  encoder = f", for features of {adapter.info['encoder']}" if "encoder" in adapter.info else ""
  return f"{folder}: {adapter.info.get('source', source)}, {adapter.width} wide{encoder}"


def _push(folder: str, name: str, private: bool, message: str | None) -> str:
  from qat_jax.sharing.share import push

  return f"{folder} is at {push(folder, name, private, message)}"


def _extract(source: str, folder: str, encoder: str, batch_size: int, cluster: str, reuse: str | None) -> str:
  from qat_jax.cluster.work import reach
  from qat_jax.datasets.splits import MOST_WITHOUT_CAPTION, open_source
  from qat_jax.encoders import load_encoder
  from qat_jax.features.extraction import extract

  reach(cluster)
  pictures, model = open_source("", "", source), load_encoder(encoder, batch_size)
  bare = sum(not pictures.about(position)["caption"] for position in range(len(pictures)))
  captioned = model.max_tokens > 0 and bare <= MOST_WITHOUT_CAPTION * len(pictures)
  kinds = ("img", "text") if captioned else ("img",)
  stores = extract(pictures, model, folder, kinds, batch_size, cluster=cluster, reuse=reuse)
  without = (
    f", without captions: {bare} have none" if model.max_tokens and 0 < bare < len(pictures) and not captioned else ""
  )
  return f"{len(stores['img'])} pictures{' and their captions' if captioned else ''} are in {folder}{without}"


def _split(root: str, **settings: object) -> str:
  from qat_jax.features.splitting import split

  rows = split(root=root, **settings)  # type: ignore[arg-type]
  return f"{root}: {', '.join(f'{count:,} in {place}' for place, count in rows.items())}"
