"""The commands extract, split and eight-bits: pictures → features → a retrieval set, and a copy that is read first."""

import argparse

from qat_jax.cli.flags import add_cluster, add_command, place


def add_extract(commands: argparse._SubParsersAction) -> None:
  """Adds the command extract."""
  parser = add_command(
    commands,
    "extract",
    "Encode pictures, and their captions if most pictures have one.",
    (
      "qat-jax extract PICTURES features --encoder openai/clip-vit-base-patch16",
      "qat-jax extract more_pictures more_features --encoder openai/clip-vit-base-patch16 --reuse features",
      "qat-jax extract PICTURES crops --encoder openai/clip-vit-base-patch16 --tiles 1,2,3",
      "qat-jax extract VIDEOS moments --encoder openai/clip-vit-base-patch16 --frames 2",
    ),
    _extract,
  )
  text = "a folder of pictures, tar shards (WebDataset) or Parquet files (docs/data.md)"
  parser.add_argument("source", metavar="SOURCE", help=text)
  parser.add_argument("folder", metavar="FOLDER", type=place, help="where to write the features")
  parser.add_argument("--encoder", metavar="NAME", required=True, help="a model of the Hugging Face hub, or its folder")
  parser.add_argument("--batch-size", metavar="N", type=int, default=64, help="pictures encoded at once")
  text = "features written before; pictures that are among them are not encoded again"
  parser.add_argument("--reuse", metavar="FOLDER", help=text)
  text = "encode crops instead of whole pictures, for small things: 1,2,3 takes 1 + 4 + 9 of each picture"
  parser.add_argument("--tiles", metavar="SIZES", type=sizes, default=(), help=text)
  text = "encode a frame for each so many seconds of the folder's videos, beside its pictures"
  parser.add_argument("--frames", metavar="SECONDS", type=float, help=text)
  add_cluster(parser)


def sizes(words: str) -> tuple[int, ...]:
  """Returns the numbers of a list such as 1,2,3."""
  try:
    return tuple(int(word) for word in words.split(","))
  except ValueError:
    raise argparse.ArgumentTypeError(f"{words!r} is no list of whole numbers; give some, such as 1,2,3") from None


def add_split(commands: argparse._SubParsersAction) -> None:
  """Adds the command split."""
  parser = add_command(
    commands,
    "split",
    "Make a retrieval set from a folder of features.",
    ("qat-jax split features retrieval_set", "qat-jax split features retrieval_set --by product --val 0.2 --test 0.2"),
    _split,
  )
  parser.description = (
    "Make a retrieval set from a folder of features. Each instance goes, whole, to train, val or test.\n"
    "Captions, and images of which another view exists, become queries. A metadata column `split` is followed."
  )
  text = "a feature folder with img_emb/ and, for text queries, text_emb/ (docs/data.md)"
  parser.add_argument("source", metavar="SOURCE", help=text)
  parser.add_argument("root", metavar="ROOT", type=place, help="where to write the retrieval set")
  text = "the metadata column that is equal for images of the same thing; by default instance"
  parser.add_argument("--by", metavar="COLUMN", help=text)
  parser.add_argument("--val", metavar="SHARE", type=float, default=0.1, help="share of the instances to choose on")
  parser.add_argument("--test", metavar="SHARE", type=float, default=0.1, help="share of the instances to measure on")
  parser.add_argument("--seed", metavar="N", type=int, default=0, help="another seed gives another split")


def add_eight_bits(commands: argparse._SubParsersAction) -> None:
  """Adds the command eight-bits."""
  parser = add_command(
    commands,
    "eight-bits",
    "Write an 8-bit copy beside unit features, which searches from the disk read first.",
    ("qat-jax eight-bits gallery", "qat-jax eight-bits captions --kind text"),
    _eight_bits,
  )
  parser.add_argument("folder", metavar="FOLDER", help="a feature folder with rows of unit length")
  text = "which features of the folder; by default img if it has them"
  parser.add_argument("--kind", choices=["img", "text"], help=text)


def _eight_bits(folder: str, kind: str | None) -> str:
  from qat_jax.features.store import FeatureStore

  store = FeatureStore.open(folder, kind)
  store.write_eight_bits()
  return f"{len(store):,} items of {folder} have an 8-bit copy, {len(store) * (store.width + 12) / 1e6:,.1f} MB"


def _extract(
  source: str,
  folder: str,
  encoder: str,
  batch_size: int,
  cluster: str,
  reuse: str | None,
  tiles: tuple[int, ...],
  frames: float | None,
) -> str:
  from qat_jax.cluster.work import reach
  from qat_jax.datasets.splits import MOST_WITHOUT_CAPTION, open_source
  from qat_jax.datasets.tiles import Tiles
  from qat_jax.encoders import load_encoder
  from qat_jax.features.extraction import extract

  reach(cluster)
  if reuse and (tiles or frames is not None):
    raise ValueError("--reuse goes by the bytes of whole pictures, which crops and frames do not have; leave it out")
  if tiles and frames is not None:
    raise ValueError("crops are of pictures, and frames of videos; give one of --tiles and --frames")
  if frames is not None:
    from qat_jax.datasets.frames import Frames

    moments = Frames(source, frames)
    extract(moments, load_encoder(encoder, batch_size), folder, ("img",), batch_size, cluster=cluster)
    return f"{moments.told()} are in {folder}; rank them by group: --group picture"
  pictures, model = open_source("", "", source), load_encoder(encoder, batch_size)
  if tiles:
    crops = Tiles(pictures, tiles)
    extract(crops, model, folder, ("img",), batch_size, cluster=cluster)
    return f"{len(crops)} crops of {len(pictures)} pictures are in {folder}; rank them by group: --group picture"
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
