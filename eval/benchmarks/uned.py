"""UnED's training features, as ILIAS publishes them, made into a retrieval set to train on.

python -m eval.benchmarks.uned features_uned.hdf5 uned_paths_1M.txt ROOT

ILIAS gives two files. The HDF5 file has `features` and `index`, one row a picture. The list `uned_paths_1M.txt` of its
repository has a line PATH,LABEL,DOMAIN for each of these rows, in the same order. Labels are numbered anew in each
domain, so an instance is a pair of both. The formats are those of ILIAS's own programs (linear_adaptation/).
"""

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from eval import commands
from eval.benchmarks.hdf5 import Hdf5Features
from eval.benchmarks.task import check_unique, check_unit_lengths, need
from qat_jax.features.splitting import split
from qat_jax.features.store import ROWS_PER_SHARD, write_features
from qat_jax.fit.linear import layer_head
from qat_jax.models.head import Head
from qat_jax.models.quari_files import read_weights

LIST = "the list is misc/uned_paths_1M.txt of ILIAS's repository"
LINE = re.compile(r"(.+),(\d+),(\d+)")
SHARE = 0.05  # share of the instances in val, and in test; ILIAS trains its layer on all instances


def read_list(path: Path | str) -> tuple[list[str], list[str], list[int]]:
  """Returns the paths, the instances (`DOMAIN/LABEL`) and the domains of a list of UnED's pictures.

  Raises ValueError that names the first line that is no PATH,LABEL,DOMAIN with two whole numbers.
  """
  paths, instances, domains = [], [], []
  text = need(Path(path), LIST).read_bytes().decode("utf-8-sig", errors="replace")
  for number, line in enumerate(text.splitlines(), 1):
    fields = LINE.fullmatch(line.strip())
    if fields is None:
      raise ValueError(
        f"{path}, line {number} is {line[:99]!r}; wanted PATH,LABEL,DOMAIN, the last two whole numbers; {LIST}"
      )
    paths.append(fields[1])
    domains.append(int(fields[3]))
    instances.append(f"{domains[-1]}/{int(fields[2])}")
  return paths, instances, domains


def write_set(features: Path | str, paths: Path | str, root: Path | str, share: float = SHARE) -> dict[str, int]:
  """Writes a retrieval set in `root`, and returns how many rows each of its folders has.

  Its metadata have a column `domain`. A copy of the features, ROOT.features, is removed at the end.

  Args:
    features: the HDF5 file.
    paths: the list of its pictures, with their labels and domains.
    root: a folder that is not there yet, or was made from the same.
    share: of the instances, for val, and the same for test. Each instance goes, whole, to one of the three.

  Raises ValueError where the list does not fit the file, or a feature is not of unit length.
  """
  store, (names, instances, domains) = Hdf5Features(features), read_list(paths)
  if len(store) != len(names):
    raise ValueError(
      f"{features} has {len(store):,} features, {paths} {len(names):,} lines; give the list of this file"
    )
  for row, (got, name) in enumerate(zip(store.ids, names, strict=True)):
    if not _same(got, name):
      raise ValueError(
        f"{features}, row {row} is {got!r}, line {row + 1} of {paths} {name!r}; the order must be the same"
      )
  check_unique(store.ids, str(features))
  check_unit_lengths(store, store.ids, str(features))
  root = Path(root)
  source = root.with_name(f"{root.name}.features")
  chunks = (store[start : start + ROWS_PER_SHARD] for start in range(0, len(store), ROWS_PER_SHARD))
  write_features(source, {"img": chunks}, {"id": store.ids, "instance": instances, "domain": domains})
  try:
    return split(source, root, val=share, test=share)
  finally:
    shutil.rmtree(source)


def _same(name: str, path: str) -> bool:
  """Says whether an id of the HDF5 file is a path of the list: as ILIAS escapes it, or with a folder before either."""
  escaped = repr(path.encode("unicode-escape"))[2:-1].replace(r"\\u", "#U").replace(r"\\x", "#U00")
  shorter, longer = sorted((f"/{name}", f"/{escaped}"), key=len)
  return longer.endswith(shorter)


def read_linear_layer(path: Path | str, width: int) -> Head:
  """Returns the head that applies a published linear layer to queries and items `width` wide; runs nothing in the file.

  Raises ValueError for a file without the layer's weight and bias, or with a layer of another width.
  """
  tensors = read_weights(need(Path(path), "ILIAS publishes a .pth file for each encoder, in lin_adapt_layers/"))
  shapes = {name: tensor.shape for name, tensor in tensors.items()}
  if len(shapes.get("layer.weight", ())) != 2 or shapes.get("layer.bias") != shapes["layer.weight"][:1]:
    raise ValueError(f"{path} has {shapes}; wanted layer.weight (E×D) and layer.bias (E)")
  weight_ED = tensors["layer.weight"]
  if weight_ED.shape[1] != width:
    raise ValueError(
      f"{path} takes features {weight_ED.shape[1]} wide, these are {width} wide; give the encoder's own layer"
    )
  params = {"kernel": weight_ED.T, "bias": tensors["layer.bias"]}
  return layer_head(params, np.zeros(width, np.float32), Path(path).name)


def main(arguments: Sequence[str] | None = None) -> None:
  """Parses the arguments, writes the set and says what is in it."""
  parser = commands.parser("eval.benchmarks.uned", __doc__)
  parser.add_argument("features", metavar="FEATURES", help="the HDF5 file of one encoder")
  parser.add_argument("paths", metavar="LIST", help="uned_paths_1M.txt: a line PATH,LABEL,DOMAIN a feature")
  parser.add_argument("root", metavar="ROOT", help="where to write the retrieval set")
  with commands.started(parser, arguments) as flags:
    rows = write_set(**vars(flags))
    print(f"{flags.root}: {', '.join(f'{count:,} in {place}' for place, count in rows.items())}")


if __name__ == "__main__":
  main()
