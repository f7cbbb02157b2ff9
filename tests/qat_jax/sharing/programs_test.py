"""Programs of an adapter, run in a process that has neither it nor, for ONNX, JAX."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest

import qat_jax
from qat_jax.adaptation import unit
from qat_jax.models import forms
from qat_jax.sharing import programs

WIDTH = 12
REMEMBERS = {"form": "query_only", "settings": {"hidden": 8}, "pairs": 40, "captions": "text"}
ADAPTIVE = {"form": "adaptive", "settings": {"hidden": 8, "rank": 2, "token_hidden": 8, "steps": 2}}
HEADS = {  # what is served is put together from these; every form alone: tests/lowering_test.py
  "text": ("levelled", {"form": "remembering", "settings": REMEMBERS, "queries": 5, "items": 2 * WIDTH, "nearest": 2}),
  "image": (
    "projected",
    {
      **{"form": "remembering", "settings": {**ADAPTIVE, "pairs": 300, "captions": "image"}},
      **{"items": 2 * WIDTH, "narrow": 20},
    },
  ),
}
EXPERTS = {"form": "experts", "settings": {"form": "static", "settings": {}, "experts": 3}}
SERVED = {
  "parts": HEADS,
  "experts": {"image": ("levelled", {**EXPERTS, "queries": 5, "items": WIDTH + 4, "nearest": 2})},
}
PROGRAM = {
  "jax": """
from jax import export
def program_of(path):
  return export.deserialize(bytearray(open(path, "rb").read())).call
""",
  "onnx": """
import onnxruntime
def program_of(path):
  session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
  return lambda query: session.run(["folded"], {"query": query})[0]
""",
}
ALONE = """
import sys
import numpy as np
queries = np.load("queries.npy")
for path in sys.argv[1:]:
  program = program_of(path)
  for rows in (1, len(queries)):
    np.save(f"{path}-{rows}.npy", np.asarray(program(queries[:rows])))
assert "qat_jax" not in sys.modules and "flax" not in sys.modules
"""


def adapter_of(forms_of):
  rng, heads = np.random.default_rng(3), {}
  for name, (form, settings) in forms_of.items():
    variables = forms.initialise(forms.FORMS[form](WIDTH, **settings), jax.random.key(0))
    moved = lambda x: (np.asarray(x) + 0.1 * rng.standard_normal(x.shape)).astype(x.dtype)
    heads[name] = qat_jax.Head(form, settings, jax.tree.map(moved, variables))
  return qat_jax.Adapter(WIDTH, heads)


@pytest.mark.parametrize("heads", SERVED)
@pytest.mark.parametrize("format_", ["jax", "onnx"])
def test_a_program_folds_any_number_of_queries_where_there_is_no_adapter(format_, heads, tmp_path):
  if format_ == "onnx":
    pytest.importorskip("jax2onnx")
  adapter = adapter_of(SERVED[heads])
  adapter.save(tmp_path / "run")
  qat_jax.export(tmp_path / "run", tmp_path / "mine", format_=format_)
  about = json.loads((tmp_path / "mine/config.json").read_text())[format_]
  queries = np.random.default_rng(0).standard_normal((7, WIDTH)).astype(np.float32)
  np.save(tmp_path / "queries.npy", queries)
  paths = {name: tmp_path / "mine" / about[name]["file"] for name in adapter.heads}
  code = PROGRAM[format_] + ALONE + ('assert "jax" not in sys.modules' if format_ == "onnx" else "")
  done = subprocess.run(
    [sys.executable, "-I", "-c", code, *paths.values()], cwd=tmp_path, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  for name, path in paths.items():
    assert b".py" not in path.read_bytes()  # nor any other path of this machine
    prepared = adapter.prepare(unit(queries, np.float32), name)
    assert (
      about[name]["output"] == ["queries", prepared.shape[1]] and about[name]["gallery"] == adapter.head(name).space
    )
    expected = np.asarray(qat_jax.fold(adapter(queries, name)))
    for rows in (1, 7):
      np.testing.assert_allclose(np.load(f"{path}-{rows}.npy"), expected[:rows], atol=1e-6)


def test_a_program_that_gives_other_numbers_is_not_written(tmp_path, monkeypatch):
  adapter_of({"text": ("static", {})}).save(tmp_path / "run")
  qat_jax.export(tmp_path / "run", tmp_path / "mine")
  before = {path.name: path.read_bytes() for path in (tmp_path / "mine").iterdir()}
  wrong = lambda data: type("Exported", (), {"call": staticmethod(lambda query: 1.001 * query)})
  monkeypatch.setattr(jax.export, "deserialize", wrong)
  with pytest.raises(ValueError, match="off the adapter's numbers; use another --format"):
    qat_jax.export(tmp_path / "run", tmp_path / "mine", format_="jax")
  assert {path.name: path.read_bytes() for path in (tmp_path / "mine").iterdir()} == before


@pytest.mark.parametrize(
  ("format_", "module", "extra"), [("jax", "flatbuffers", "programs"), ("onnx", "jax2onnx", "onnx")]
)
def test_what_writes_a_program_and_is_missing_is_named(format_, module, extra, monkeypatch):
  monkeypatch.setitem(sys.modules, module, None)
  for name in [name for name in sys.modules if name.startswith("jax._src.export.serialization")]:
    monkeypatch.delitem(sys.modules, name)
  with pytest.raises(ImportError, match=rf"pip install 'qat-jax\[{extra}\]'"):
    programs.programs_of(adapter_of({"text": ("plain", {})}), format_, 1)


def test_a_number_of_queries_is_for_stablehlo_alone(tmp_path):
  with pytest.raises(ValueError, match="queries is 8, which is for the format stablehlo; leave it out for onnx"):
    qat_jax.export(tmp_path, tmp_path / "mine", format_="onnx", queries=8)
