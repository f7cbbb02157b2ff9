"""The commands convert, export and push: adapters from others and for others."""

import argparse

from qat_jax.cli.flags import add_command, place


def add_convert(commands: argparse._SubParsersAction) -> None:
  """Adds the command convert."""
  parser = add_command(
    commands,
    "convert",
    "Write a released QuARI checkpoint as an adapter.",
    ("qat-jax convert hf://EricX003/QuARI-clip-vit-base-patch16 adapters/quari --dtype bfloat16",),
    _export,
  )
  parser.add_argument("source", metavar="SOURCE", help="a folder with config.yml and weights.pt, or hf://OWNER/NAME")
  parser.add_argument("folder", metavar="FOLDER", type=place, help="where to write the adapter")
  parser.add_argument("--revision", metavar="NAME", help="a branch, tag or commit on the hub; by default the newest")
  types = ["float32", "bfloat16"]
  parser.add_argument("--dtype", choices=types, default="float32", help="the type of matrix products")


def add_export(commands: argparse._SubParsersAction) -> None:
  """Adds the command export."""
  parser = add_command(
    commands,
    "export",
    "Write a run's adapter to a folder of its own, with a model card.",
    (
      "qat-jax export runs/mine mine --license apache-2.0",
      "qat-jax export runs/mine mine --format stablehlo --queries 8",
    ),
    _export,
  )
  parser.add_argument("source", metavar="SOURCE", help="a run's folder, or an adapter's")
  parser.add_argument("folder", metavar="FOLDER", type=place, help="where to write the adapter")
  parser.add_argument("--license", metavar="NAME", dest="license_", help="the licence in the card, such as apache-2.0")
  text = "all but adapter add programs from queries to folded queries (docs/sharing.md)"
  formats = ["adapter", "jax", "onnx", "stablehlo"]
  parser.add_argument("--format", dest="format_", choices=formats, default="adapter", help=text)
  text = "queries that a stablehlo program takes at once"
  parser.add_argument("--queries", metavar="N", type=int, default=1, help=text)


def add_push(commands: argparse._SubParsersAction) -> None:
  """Adds the command push."""
  parser = add_command(
    commands,
    "push",
    "Send an exported adapter to the Hugging Face hub.",
    ("qat-jax push mine OWNER/NAME --private",),
    _push,
  )
  parser.add_argument("folder", metavar="FOLDER", help="a folder that `qat-jax export` wrote")
  parser.add_argument("name", metavar="OWNER/NAME", help="the repository on the hub")
  parser.add_argument("--private", action="store_true", help="make a new repository visible to its owner only")
  parser.add_argument("--message", metavar="TEXT", help="the commit's message")


def _export(source: str, folder: str, **flags: object) -> str:
  from qat_jax.sharing.share import export

  adapter = export(source, folder, **flags)  # type: ignore[arg-type]
  encoder = f", for features of {adapter.info['encoder']}" if "encoder" in adapter.info else ""
  return f"{folder}: {adapter.info.get('source', source)}, {adapter.width} wide{encoder}"


def _push(folder: str, name: str, private: bool, message: str | None) -> str:
  from qat_jax.sharing.share import push

  return f"{folder} is at {push(folder, name, private, message)}"
