"""Programs of an adapter for servers without it: unit queries (float32, QD) → folded queries, weights included.

Each head is a file of its own, `text` and `image`. A folded query is what an inner-product index over the prepared
gallery is asked with; heads that widen the gallery's items widen it alike.
"""

import contextlib
import io
import logging
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from qat_jax.adaptation import fold
from qat_jax.adapter import Adapter
from qat_jax.models.head import Head
from qat_jax.types import QUERY_TYPES

FORMATS = ("jax", "onnx", "stablehlo")
FILES = tuple(f"{name}.{format_}" for name in QUERY_TYPES for format_ in FORMATS)
PLATFORMS = ("cpu", "cuda", "tpu")
OPSET = 21  # of ONNX; the first that has all the operations is 20
NEAR = 1e-5  # that a program's folded queries may be from the adapter's
ANY = "queries"  # the name of a dimension that is not fixed
LOCATIONS = "jax_traceback_in_locations_limit"  # how many places of the code an operation of a program names


def programs_of(adapter: Adapter, format_: str, queries: int) -> tuple[dict[str, bytes], dict[str, Any]]:
  """Returns a program for each head, by its file's name, and what config.json says of them: shapes, and what runs them.

  "jax" is what `jax.export.deserialize` reads, for any number of queries on CPUs, GPUs and TPUs; "onnx" takes any
  number too; "stablehlo" is portable bytecode for `queries` at once, without a call to a library of a platform. The
  first two are run and compared with the adapter. Raises ImportError where what makes them is missing, and ValueError
  where a head cannot be written so.
  """
  files: dict[str, bytes] = {}
  about: dict[str, Any] = {}
  rows = queries if format_ == "stablehlo" else ANY
  for name, head in adapter.heads.items():
    with _without_places():
      data, more = {"jax": _jax, "onnx": _onnx, "stablehlo": _stablehlo}[format_](adapter, name, queries)
    files[f"{name}.{format_}"] = data
    shapes = {"input": [rows, adapter.width], "output": [rows, head.items_wide(adapter.width)], "dtype": "float32"}
    about[name] = {"file": f"{name}.{format_}", "gallery": head.space, **shapes, **more}
  return files, {format_: about}


def _jax(adapter: Adapter, name: str, queries: int) -> tuple[bytes, dict[str, Any]]:
  exported = _exported(adapter, name, jax.export.symbolic_shape(ANY)[0], PLATFORMS)
  try:
    data = exported.serialize()
  except ImportError as error:
    raise ImportError("--format jax wants the package flatbuffers: pip install 'qat-jax[programs]'") from error
  _compare(adapter, name, jax.export.deserialize(data).call)
  return bytes(data), {"platforms": list(PLATFORMS), "jax": jax.__version__}


def _stablehlo(adapter: Adapter, name: str, queries: int) -> tuple[bytes, dict[str, Any]]:
  exported = _exported(adapter, name, queries, ("cpu",))
  if "custom_call" in exported.mlir_module():
    raise ValueError(f"the head for {name} queries calls a library of the platform; export the adapter alone")
  return exported.mlir_module_serialized, {}


def _onnx(adapter: Adapter, name: str, queries: int) -> tuple[bytes, dict[str, Any]]:
  try:
    with _quiet():
      import onnxruntime
      from jax2onnx import to_onnx
  except ImportError as error:
    raise ImportError(f"--format onnx wants the extra onnx ({error}): pip install 'qat-jax[onnx]'") from error
  try:
    with _quiet():
      model = to_onnx(
        _unrolled(_folded(adapter, adapter.heads[name])),
        [(ANY, adapter.width)],
        model_name=name,
        opset=OPSET,
        input_names=["query"],
        output_names=["folded"],
      )
      data = model.SerializeToString()
      session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
  except Exception as error:  # of three libraries; a model of more than 2 GB among them
    reason = " ".join(str(error).split())[:300]
    raise ValueError(f"the head for {name} queries has no program in ONNX ({reason}); use --format jax") from error
  _compare(adapter, name, lambda query_QD: session.run(["folded"], {"query": query_QD})[0])
  return data, {"opset": OPSET}


def _folded(adapter: Adapter, head: Head) -> Callable[[jax.Array], jax.Array]:
  module = head.module(adapter.width)
  return lambda query_QD: fold(module.apply(head.variables, query_QD))  # type: ignore[arg-type]  # its first result


def _unrolled(function: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], jax.Array]:
  """Returns the function with its loops written out: jax2onnx has no `scan`."""

  def without_loops(query_QD: jax.Array) -> jax.Array:
    with jax.disable_jit():
      return function(query_QD)

  return without_loops


def _exported(adapter: Adapter, name: str, rows: Any, platforms: tuple[str, ...]) -> jax.export.Exported:
  example = jax.ShapeDtypeStruct((rows, adapter.width), jnp.float32)
  return jax.export.export(jax.jit(_folded(adapter, adapter.heads[name])), platforms=platforms)(example)


def _compare(adapter: Adapter, name: str, program: Callable[[np.ndarray], Any]) -> None:
  """Raises ValueError where a program's folded queries are not the adapter's."""
  query_QD = np.random.default_rng(0).standard_normal((5, adapter.width)).astype(np.float32)
  expected_QE = np.asarray(fold(adapter(query_QD, name)))
  for rows in (1, len(query_QD)):
    try:
      off = float(np.abs(np.asarray(program(query_QD[:rows])) - expected_QE[:rows]).max())
    except Exception as error:  # of the library that runs it
      reason = " ".join(str(error).split())[:300]
      raise ValueError(f"the program for {name} queries does not run ({reason}); use another --format") from error
    if not off <= NEAR * max(1.0, float(np.abs(expected_QE).max())):
      raise ValueError(
        f"the program for {name} queries is {off:.1e} off the adapter's numbers; use another --format, or "
        "--dtype float32 for a released checkpoint"
      )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Keeps out of the log what a converter says of operations that are not ours."""
  before = logging.root.manager.disable
  logging.disable(logging.CRITICAL)
  try:
    with contextlib.redirect_stdout(io.StringIO()):
      yield
  finally:
    logging.disable(before)


@contextlib.contextmanager
def _without_places() -> Iterator[None]:
  """Keeps out of programs where their operations were written: paths of this machine, and lines that change."""
  before = getattr(jax.config, LOCATIONS)
  jax.config.update(LOCATIONS, 0)
  try:
    yield
  finally:
    jax.config.update(LOCATIONS, before)
