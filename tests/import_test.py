"""Who may import whom: the packages, the order of qat_jax's modules, and where third parties may come in."""

import ast
import functools
import graphlib
import pathlib

import pytest

from qat_jax.search.indexes.table import INDEXES

ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = ("qat_jax", "eval", "train", "configs")
MAY_IMPORT = {
  "qat_jax": {"qat_jax"},
  "eval": {"eval", "qat_jax"},
  "train": {"train", "qat_jax"},
  "configs": {"configs", "qat_jax"},
}
ENTRY_POINTS = (
  "train/main.py",
  "train/encoder/__main__.py",
  "eval/main.py",
)  # they read a recipe from the command line

# A module of qat_jax imports only those before it, so this is also an order to read them in.
# A line is a folder below qat_jax, and modules of it; none before the colon: the package itself.
ORDER_BY_FOLDER = """
: types stages sealed keeping
cluster: nodes crew work
: hub adaptation metrics runs quicker
search: cores spectrum bounds coarse gates gallery top copies uppers kernels scores exact masks whole grouping rank
search: diversity sums warming index
search: indexes
: duplicates datasets
encoders: files settings positions tower names weights open_clip families pixels texts encoder
features: shards eight_bits writer store prepared retrieval_set leaks splitting reuse records encoding extraction mining
models: dropout tokens closed_forms memory projected levels quari_files quari experts ensemble forms head
models: checkpoints head_files
: marks planted adapter evidence
distributed: gallery_shard gallery
sharing: card programs share
: validation words
fit: training candidates parts discriminant clusters experts whitening linear memory levels learning
serve: variety job_files batch refined limits queue items
serve.collection: log blocks collection shared feeding migrating
serve: pictures alike collected encoding aspects summands searches planning piecewise ranking why service opening living
serve: learning places starting writing migration
serve.web: schemas asking views clip_retrieval metrics guard description state changing app server
serve: demo
: cli __main__
"""
ORDER = tuple(
  f"{folder}.{name}".lstrip(".")
  for folder, names in (line.split(":") for line in ORDER_BY_FOLDER.strip().splitlines())
  for name in names.split()
)

CLUSTER = ("qat_jax/cluster/nodes.py", "qat_jax/distributed/gallery")
FENCES = {
  "prometheus_client": ("qat_jax/serve/web/metrics.py",),
  "pydantic": ("qat_jax/serve/web/schemas.py", "qat_jax/serve/web/asking.py", "qat_jax/serve/web/description.py"),
  "starlette": ("qat_jax/serve/web/app.py", "qat_jax/serve/web/guard.py"),
  "uvicorn": ("qat_jax/serve/web/server.py",),
  "orbax": ("qat_jax/models/checkpoints.py",),
  **{
    package: (
      f"qat_jax/search/indexes/{name}.py",
      *(["eval/speed/ways.py"] if name == "faiss" else []),
    )  # it measures FAISS
    for name, kind in INDEXES.items()
    for package in kind.packages
  },
  "huggingface_hub": ("qat_jax/hub.py", "qat_jax/encoders/encoder.py"),
  "jax2onnx": ("qat_jax/sharing/programs.py",),
  "onnxruntime": ("qat_jax/sharing/programs.py",),
  "pickle": (
    *("qat_jax/models/quari_files.py", "eval/benchmarks/"),  # parsers that run nothing, and a writer
    *CLUSTER,  # a cluster's own messages: SECURITY.md
  ),
  **dict.fromkeys(("cloudpickle", "dill", "joblib", "marshal", "shelve"), ()),
  "ray": ("qat_jax/cluster/nodes.py", "eval/speed/cluster.py"),  # which starts one
  "tensorflow_datasets": ("qat_jax/datasets/",),
  "transformers": ("qat_jax/encoders/", "train/encoder/"),  # which makes an encoder
}
ON_USE = (
  *(package for kind in INDEXES.values() for package in kind.packages),
  "av",
  "huggingface_hub",
  "jax2onnx",
  "onnxruntime",
  "orbax",
  "ray",
  "transformers",
)  # missing on some systems, or slow to import


def imports(nodes):
  """Returns the modules that nodes of a file import, by their full names; `from a import b` counts as a.b."""
  found = set()
  for node in nodes:
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{ast.unparse(node)} is a relative import; write the whole name"
      found |= {f"{node.module}.{alias.name}" for alias in node.names}
    elif (
      isinstance(node, ast.Call) and getattr(node.func, "id", "") == "needed" and isinstance(node.args[0], ast.Constant)
    ):
      found.add(node.args[0].value)  # an index imports its package by name
  return found


PATHS = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
FILES = {path.relative_to(ROOT).as_posix(): path for path in PATHS}


@functools.cache
def tree(name):
  return ast.parse(FILES[name].read_text())


@functools.cache
def nodes_of(name):
  return list(ast.walk(tree(name)))


@functools.cache
def all_imports(at_once=False):
  """Returns what each file imports, by its name; with `at_once` without what functions import."""
  return {name: imports(tree(name).body if at_once else nodes_of(name)) for name in FILES}


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_only_those_it_may(package):
  ours = {*PACKAGES, "tests", "colab"}
  for name, found in all_imports().items():
    if name.startswith(f"{package}/"):
      may = MAY_IMPORT[package] | ({"configs"} if name in ENTRY_POINTS else set())
      wrong = {module for module in found if module.split(".")[0] in ours - may}
      assert not wrong, f"{name} imports {wrong}; {package} may import {MAY_IMPORT[package]} alone"


def test_recipes_are_imported_by_entry_points_and_by_each_other_alone():
  users = {name for name, found in all_imports().items() if "configs" in {module.split(".")[0] for module in found}}
  assert {name for name in users if not name.startswith("configs/")} == set(ENTRY_POINTS)


def place(module):
  """Returns where a module of qat_jax (its name below the package) stands in ORDER."""
  places = [i for i, name in enumerate(ORDER) if module == name or module.startswith(f"{name}.")]
  return places[0] if places else None


def below(name):
  """Returns the dotted name of a file of qat_jax below the package; a folder's for its `__init__`."""
  return name.removeprefix("qat_jax/").removesuffix(".py").replace("/", ".").removesuffix(".__init__")


@functools.cache
def modules():
  """Returns what each module imports. The package itself is left out: every import of a module runs it."""
  return {
    below(name): found
    for name, found in all_imports().items()
    if name.startswith("qat_jax/") and below(name) != "__init__"
  }


def used_modules(found):
  """Returns the modules of qat_jax among some imports; `qat_jax.rank` and other names of the package itself are not."""
  names = {full.removeprefix("qat_jax.") for full in found if full.startswith("qat_jax.")}
  return {next((known for known in (name, name.rpartition(".")[0]) if known in modules()), None) for name in names}


def test_the_order_names_every_module():
  files = {name for name in modules() if f"qat_jax/{name.replace('.', '/')}/__init__.py" not in FILES}
  assert not [module for module in files if place(module) is None]
  assert not [name for name in ORDER if not any(place(module) == ORDER.index(name) for module in modules())]


def test_a_module_imports_only_modules_before_it():
  """Imports inside functions count too, also those of a `__getattr__`: a lazy import would hide a circle."""
  graph = {name: used_modules(found) - {None, name} for name, found in modules().items()}
  tuple(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError and names the circle

  @functools.cache
  def height(name):  # a folder's `__init__` stands where the last of what it imports does
    return place(name) if place(name) is not None else max(map(height, graph[name]), default=-1)

  wrong = [f"{name} imports {other}" for name, used in graph.items() for other in used if height(other) > height(name)]
  for folder in {name.rpartition(".")[0] for name in modules()} & set(
    modules()
  ):  # its `__init__` runs before its modules
    last = max(place(name) for name in modules() if name.startswith(f"{folder}.") and place(name) is not None)
    wrong += [f"{folder} imports {other}" for other in graph[folder] if height(other) > last]
  assert not wrong


def test_a_folder_stands_in_one_place_of_the_order():
  """So folders have an order as well: none of them imports another that imports it."""
  folders = [name.split(".")[0] for name in ORDER]
  assert [name for i, name in enumerate(folders) if name in folders[: max(i - 1, 0)] and folders[i - 1] != name] == []


def test_a_module_takes_from_the_package_itself_nothing_but_its_version_and_its_place():
  """`qat_jax.rank` inside qat_jax would be an import of everything."""
  for name in modules():
    path = f"qat_jax/{name.replace('.', '/')}"
    nodes = nodes_of(f"{path}.py" if f"{path}.py" in FILES else f"{path}/__init__.py")
    used = {ast.unparse(node) for node in nodes if isinstance(node, ast.Attribute)}
    wrong = {text for text in used if text.startswith("qat_jax.") and text.count(".") == 1}
    assert wrong <= {"qat_jax.__version__", "qat_jax.__file__"}, f"qat_jax/{name}: {wrong}"
    names = {full for full in modules()[name] if full.startswith("qat_jax.") and used_modules({full}) == {None}}
    assert names <= {"qat_jax.__version__"}, f"qat_jax/{name}: {names}"


@pytest.mark.parametrize("library", FENCES)
def test_a_third_party_stays_inside_its_fence(library):
  users = {name for name, found in all_imports().items() if library in {module.split(".")[0] for module in found}}
  assert {name for name in users if not name.startswith(FENCES[library])} == set()


def test_no_file_that_is_read_is_run():
  for name in FILES:
    for node in (node for node in nodes_of(name) if isinstance(node, ast.Call)):
      called, said = ast.unparse(node.func), f"{name}: {ast.unparse(node)}"
      assert called not in ("pickle.load", "pickle.loads") or name.startswith(CLUSTER), said
      assert called not in ("exec", "eval", "yaml.load", "yaml.unsafe_load"), said
      given = [word.value for word in node.keywords if word.arg == "allow_pickle"]
      assert all(isinstance(value, ast.Constant) and value.value is False for value in given), said


@pytest.mark.parametrize("library", ON_USE)
def test_a_heavy_library_is_imported_on_use(library):
  assert not [
    name for name, found in all_imports(at_once=True).items() if library in {module.split(".")[0] for module in found}
  ]
