r"""The published comparison on ILIAS in one command, for whoever has its files: python -m eval.published ilias ROOT

ROOT is a copy of what ILIAS publishes (ilias_data/ on its site), or links to it: image_ids/, a folder of one encoder's
features_*.hdf5, and, as far as they are there, features_uned.hdf5 with uned_paths_1M.txt of the repository,
lin_adapt_layers/*.pth and similarities/. The list mini_ilias_yfcc100m_ids.txt makes it mini-ILIAS, of 5 million.

Says what is there and what is missing, trains on UnED's features, measures every row on the same queries and gallery,
and writes WORKDIR/published.md and .json with the published figures beside them. A command that was ended goes on.
Words that begin with --config. go to training and measuring, such as --config.train.steps=2000.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from eval import commands
from eval.benchmarks import ilias, ilias_features, ilias_files
from eval.benchmarks.hdf5 import Hdf5Features
from eval.benchmarks.ilias import Ilias
from eval.benchmarks.uned import write_set
from eval.markdown import markdown
from qat_jax.adapter import Adapter, load
from qat_jax.fit.training import PLAIN
from qat_jax.stages import write_whole

SITE = "https://vrg.fel.cvut.cz/ilias_data/"
MINI = "mini_ilias_yfcc100m_ids.txt"
QUARI, SOURCE = "QuARI, arXiv 2505.21647", "ILIAS, arXiv 2502.11748"
TABLE_G = "5M; the paper's Table G has an erratum (ilias#4), the site has the right figures"


class Figure(NamedTuple):
  """A published mAP@1000 in percent."""

  encoder: str  # what its folder's or layer's name holds
  task: str
  size: str
  row: str
  value: float
  source: str


PUBLISHED = (
  Figure("siglip2-large", "i2i", "100M", "plain", 20.8, QUARI),
  Figure("siglip2-large", "i2i", "100M", "published_linear", 31.3, QUARI),
  Figure("siglip2-large", "i2i", "100M", "paper", 50.0, f"{QUARI}, trained on UnED"),
  Figure("siglip2-large", "i2i", "100M", "released", 35.3, f"{QUARI}, trained on texts"),
  Figure("siglip2-large", "t2i", "100M", "plain", 19.8, QUARI),
  Figure("siglip2-large", "t2i", "100M", "released", 38.2, QUARI),
  Figure("siglip2-large", "t2i", "5M", "plain", 24.7, QUARI),
  Figure("siglip2-large", "t2i", "5M", "released", 40.6, QUARI),
  Figure("siglip2-large", "i2i", "5M", "published_linear", 37.3, f"{SOURCE}, {TABLE_G}"),
  Figure("pe-core-large", "i2i", "5M", "published_linear", 39.6, f"{SOURCE}, {TABLE_G}"),
  Figure("dinov3-large", "i2i", "5M", "published_linear", 32.9, f"{SOURCE}, {TABLE_G}"),
)
RELEASED = (
  "The released checkpoints were made for pictures of 512 × 512, not kept in proportion, by transformers; ILIAS's "
  "features are of pictures whose longer side has 724, 512 or 384 pixels, by timm. The space is the same, the inputs "
  "are not: their row says what a checkpoint does on these features, not what it does on its own."
)
CAVEAT = (
  "Published figures are of the papers' own runs. Ours are of the files at hand: where a file is missing the row is "
  "too, and other distractors make another benchmark."
)


class Files(NamedTuple):
  """What of ILIAS's publications lies below a folder."""

  root: Path
  features: Path
  distractors: int  # files of a million
  mini: Path | None
  uned: Path | None
  listed: Path | None
  layer: Path | None
  similarities: tuple[Path, ...]
  encoder: str  # as the published figures name it; "" where it is none of theirs
  width: int


def gallery_size(files: Files) -> str:
  """Returns which set the gallery is: 100M, 5M, or, where distractors are missing, how many there are of how many."""
  gallery = ilias_features.open_tasks(files.root, files.features, files.distractors, files.mini)[0].gallery
  there = len(gallery) - len(Ilias.open(files.root).positive_ids)
  wanted = len(set(files.mini.read_text().split())) if files.mini else 100_000_000
  if files.mini and there == wanted:
    return "5M"
  return "100M" if files.distractors == 100 and not files.mini else f"{there:,} of {wanted:,} distractors"


def inventory(root: Path, features: Path | None, layer: Path | None, encoder: str) -> Files:
  """Returns what lies below `root`; raises FileNotFoundError where it is unclear which features are meant."""
  if features is None or not list(features.glob("features_positive*.hdf5")):
    root = features or root
    there = sorted({path.parent for path in root.rglob("features_positive*.hdf5")})
    if len(there) != 1:
      names = ", ".join(map(str, there)) or f"no features_positives.hdf5; {SITE}features/ has them"
      raise FileNotFoundError(f"{root} holds {len(there)} encoders' features ({names}); say --features=FOLDER")
    features = there[0]
  first = lambda name: next(iter(sorted(features.glob(name)) or sorted(root.rglob(name))), None)
  about = encoder or features.name
  layers = sorted(root.rglob("lin_adapt_layers/*.pth"))
  if layer is None and layers:
    own = (
      layers if len(layers) == 1 else [path for path in layers if named(path.stem) and named(path.stem) == named(about)]
    )
    layer = own[0] if len(own) == 1 else None
  return Files(
    root,
    features,
    len(list(features.glob("features_distractors_*.hdf5"))),
    next(iter(sorted(root.rglob(MINI))), None),
    first("features_uned.hdf5"),
    first("uned_paths_1M.txt"),
    layer,
    tuple(sorted(path for path in root.rglob("similarities/*") if path.suffix in (".json", ".pkl"))),
    named(about) or (named(layer.stem) if layer else ""),
    Hdf5Features(next(iter(sorted(features.glob("features_positive*.hdf5"))))).width,
  )


def named(text: str) -> str:
  """Returns which of the published figures' encoders a name means, such as vit_large_patch16_siglip_512.v2_webli."""
  text = text.lower().replace("_", "-")
  if "large" not in text and "-l-" not in f"-{text}-" and "vitl" not in text:
    return ""
  kinds = {
    "siglip2": "siglip2-large",
    "v2-webli": "siglip2-large",
    "pe-core": "pe-core-large",
    "dinov3": "dinov3-large",
  }
  return next((name for word, name in kinds.items() if word in text), "")


def inventory_text(files: Files, size: str, released: str) -> str:
  """Returns a Markdown list of what is there, what is missing, and where that comes from."""
  of = files.encoder or "none that a published figure is of (--encoder)"
  lines = [
    f"Features: {files.features}, {files.width} wide; the encoder is {of}",
    f"Distractors: {files.distractors} files of 100, the gallery is {size}; other sets have no published figures",
  ]
  wanted = (
    ("the list of mini-ILIAS", files.mini, f"image_ids/{MINI}: without it all of the files count"),
    (
      "UnED's training features",
      files.uned,
      "features/, features_uned.hdf5 of the same encoder: ours and the paper's form",
    ),
    ("the list of UnED's pictures", files.listed, "misc/uned_paths_1M.txt of the repository ilias-vrg/ilias"),
    ("the published linear layer", files.layer, "lin_adapt_layers/: its row (--linear_layer=FILE.pth)"),
    (
      "similarities",
      ", ".join(map(str, files.similarities)),
      "similarities/: what others found, scored by the same rule",
    ),
    ("a released checkpoint", released or None, "hf://EricX003/QuARI-google-siglip2-large-patch16-512: --released"),
  )
  lines += [f"{what}: {there}" if there else f"{what}: missing, {where}" for what, there, where in wanted]
  return "\n".join(f"- {line[0].upper()}{line[1:]}" for line in lines)


def scored(files: Files) -> list[dict[str, Any]]:
  """Returns the rows of the files of similarities, by ILIAS's own rule; each must hold queries of one type."""
  benchmark, rows = Ilias.open(files.root), []
  texts = set(benchmark.text_query_ids)
  for path in files.similarities:
    found = benchmark.score(ilias_files.read_similarities(path), ilias.K, str(path))
    task = "t2i" if set(found["ap"]) <= texts else "i2i"
    row = {"row": f"similarities/{path.name}", "task": task, "value": found["map"]}
    rows.append(row | {key: found[key] for key in ("interval", "queries")})
  return rows


def rows_of_runs(
  files: Files, workdir: Path, released: str, encoder: str, words: Sequence[str]
) -> list[dict[str, Any]]:
  """Returns a row for each method of each run that the files at hand allow; trains what was not trained."""
  rows: list[dict[str, Any]] = []
  given = [f"--config.benchmark.root={files.root}", f"--config.benchmark.features={files.features}"]
  given += [
    f"--config.benchmark.distractor_files={files.distractors}",
    f"--config.benchmark.mini_ids={files.mini or ''}",
  ]
  given += [f"--config.benchmark.linear_layer={files.layer or ''}", *words]

  def run(name: str, config: str, methods: dict[str, str], more: Sequence[str] = ()) -> None:
    words = [f"--config.eval.methods=({','.join(map(repr, methods))},)", *given, *more]
    called("eval.main", "--config", config, "--workdir", str(workdir / name), *words)
    found = json.loads((workdir / name / "eval" / "metrics.json").read_text())
    for one in found["results"]:
      if one["metric"] == "ilias/map":
        rows.append(
          {"row": methods[one["method"]], "task": one["task"]}
          | {key: one[key] for key in ("value", "interval", "queries")}
        )

  Adapter(files.width, {"image": PLAIN, "text": PLAIN}).save(workdir / "plain" / "adapter")
  plain = {"plain": "plain"} | ({"published_linear": "published_linear"} if files.layer else {})
  run("plain", f"configs/benchmark.py:ilias,{encoder}", plain)
  if files.uned and files.listed:
    write_set(files.uned, files.listed, workdir / "uned")
    trained = [f"--config.data.root={workdir / 'uned'}", "--config.data.allow_shared_instances=True"]
    ours = ("static", "ilias_linear", "plda", "experts", "trained_form", "adapted")
    for name, form, methods in (
      ("gated", "", {method: "gated" if method == "trained_form" else method for method in ours}),
      ("paper", ",paper", {"trained_form": "paper"}),
    ):
      config = f"configs/uned.py:{encoder}{form}"
      called("train.main", "--config", config, "--workdir", str(workdir / name), *trained, *words)
      run(name, config, methods, trained)
  if released:
    load(released).save(workdir / "released" / "adapter")
    run("released", f"configs/benchmark.py:ilias,{encoder}", {"adapted": "released"})
  return rows


def called(module: str, *words: str) -> None:
  """Runs a program of this checkout; raises ValueError where it fails, after its own words."""
  if subprocess.run([sys.executable, "-m", module, *words], check=False).returncode:
    raise ValueError(f"python -m {module} failed; see above. The same command goes on where it was")


def markdown_table(rows: Sequence[dict[str, Any]], encoder: str, size: str) -> str:
  """Returns the rows as a Markdown table, the published figures of the same set beside them."""
  lines, of = [], {(one.task, one.row): one for one in PUBLISHED if (one.encoder, one.size) == (encoder, size)}
  for one in rows:
    figure = of.pop((one["task"], one["row"]), None)
    low, high = one["interval"]
    published = [f"{figure.value:.1f}", figure.source] if figure else ["–", ""]
    value = f"{one['value']:.1f} [{low:.1f}, {high:.1f}]"
    lines.append([one["task"], one["row"], value, str(one["queries"]), *published])
  lines += [[task, row, "not measured", "", f"{one.value:.1f}", one.source] for (task, row), one in of.items()]
  return markdown(["queries", "row", "mAP@1000, 95% interval", "queries", "published", "source"], lines)


def write_report_of(files: Files, workdir: Path, released: str, encoder: str, words: Sequence[str]) -> str:
  """Returns the report, and writes it with its rows to `workdir`."""
  size = gallery_size(files)
  there = inventory_text(files, size, released)
  print(there, flush=True)
  rows = scored(files) + rows_of_runs(files, workdir, released, encoder, words)
  parts = [f"# ILIAS {size}, as published and here", markdown_table(rows, files.encoder, size), CAVEAT, there]
  text = "\n\n".join(parts[:3] + ([RELEASED] if released else []) + parts[3:]) + "\n"
  workdir.mkdir(parents=True, exist_ok=True)
  write_whole(workdir / "published.json", json.dumps({"size": size, "rows": rows}, indent=1).encode())
  write_whole(workdir / "published.md", text.encode())
  return text


def main(arguments: Sequence[str] | None = None) -> None:
  """Parses the flags and prints the report."""
  parser = commands.parser("eval.published", __doc__)
  parser.add_argument("benchmark", choices=["ilias"])
  parser.add_argument("root", type=Path, metavar="ROOT")
  parser.add_argument("--features", type=Path, help="the folder of one encoder's HDF5 files; the only one below ROOT")
  parser.add_argument("--linear_layer", type=Path, help="its .pth file; the one of the same name below ROOT")
  parser.add_argument("--encoder", default="", help="such as siglip2-large, where the folder's name does not say")
  parser.add_argument("--released", default="", help="a released checkpoint: a folder, or hf://owner/name")
  parser.add_argument("--workdir", type=Path, default=Path("runs/published"))
  with commands.started(parser, arguments, passed_on="--config.") as flags:
    files = inventory(flags.root, flags.features, flags.linear_layer, flags.encoder)
    encoder = "google/siglip2-large-patch16-512" if files.encoder == "siglip2-large" else files.features.name
    print(write_report_of(files, flags.workdir, flags.released, encoder, flags.passed_on))


if __name__ == "__main__":
  main()
