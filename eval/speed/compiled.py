"""What the hot paths cost on an accelerator that is not here, by its own compiler: python -m eval.speed.compiled.

    pip install 'jax[tpu]' and python -m eval.speed.compiled --target v5e:2x2      a TPU
    pip install 'jax[cuda12]' and python -m eval.speed.compiled --target h100      a GPU

Nothing is run and no accelerator is needed: each program is compiled for the target from the shapes of its arguments,
and the compiled program says what it computes, moves and holds. A program that does not fit the target's memory is an
error of the compiler, and its row says so.
"""

from __future__ import annotations

import argparse
import functools
import inspect
import math
import os
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from eval.speed.encoders import SHAPES
from eval.speed.moved import filter_program
from qat_jax.adaptation import fold
from qat_jax.encoders.tower import VisionTower
from qat_jax.models import forms
from qat_jax.runs import ANEW, end_on_signals
from qat_jax.search import kernels, scores
from qat_jax.search.bounds import Factors

GIB = 2**30
BYTES = {
  "pred": 1,
  "s8": 1,
  "u8": 1,
  "bf16": 2,
  "f16": 2,
  "s16": 2,
  "u16": 2,
  "s32": 4,
  "u32": 4,
  "f32": 4,
  "s64": 8,
  "u64": 8,
}
UNTRIED: dict[str, str | bool] = {"xla_gpu_autotune_level": "0"}  # a GPU that is not there cannot try kernels out
NAMING = ("parameter", "get-tuple-element", "tuple", "bitcast", "constant", "copy-done", "while", "conditional", "call")
PAPER: dict[str, Any] = {"rank": 64, "token_hidden": 512, "layers": 4, "steps": 4, "heads": 8}


class Target(NamedTuple):
  """An accelerator, and what its maker says of one chip of it."""

  platform: str
  topology: str  # JAX's name of it; of a GPU the file of its description beside this one
  flops: float  # bfloat16, a second
  bandwidth: float  # bytes a second
  memory: float  # bytes


TARGETS = {
  "v5e:2x2": Target("tpu", "v5e:2x2", 197e12, 819e9, 16 * GIB),
  "h100": Target("cuda", "h100.txtpb", 989e12, 3350e9, 80 * GIB),
}


class Program(NamedTuple):
  """A program of the hot paths, and the shapes it is compiled for."""

  name: str
  function: Callable
  arguments: tuple  # of jax.ShapeDtypeStruct
  per: int  # items, queries or images


class Cost(NamedTuple):
  """What a compiled program says of itself."""

  operations: float
  moved: float  # bytes
  held: float  # bytes: arguments, results and what lies between


def shape(*sizes: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
  """Returns the shape of an argument."""
  return jax.ShapeDtypeStruct(sizes, dtype)


def searches(items: int = 1 << 20, width: int = 768, queries: int = 8) -> Iterator[Program]:
  """Yields the programs of exact search of a gallery on the device."""
  block = kernels.BLOCK_ROWS_ELSEWHERE
  for dtype in ("float32", "bfloat16"):
    for directions in (0, 4):
      filter_, arguments = filter_program(width, queries, directions, dtype)
      size = f"{block:,} × {width} {dtype}, {queries} queries, {directions} directions"
      yield Program(f"search: bounds, {size}", filter_, arguments, block)
  each_Q = shape(queries)
  upper_NQ = shape(items, queries)
  kth = functools.partial(inspect.unwrap(kernels._kth), count=128)
  size = f"{items:,} items, {queries} queries"
  yield Program(f"search: threshold, {size}", kth, (upper_NQ,), items)
  reaching = functools.partial(inspect.unwrap(kernels._reaching), most=kernels.FOUND)
  yield Program(f"search: what reaches it, {size}", reaching, (upper_NQ, each_Q), items)
  rows = 64 * scores.ITEMS
  parts: Any = (shape(queries, *rest) for rest in ((width,), (1,), (width, 8), (width, 8), ()))
  factors = Factors(*parts)
  arguments = (
    factors,
    shape(rows, width, dtype=jnp.bfloat16),
    shape(64, dtype=jnp.int32),
    shape(64, scores.ITEMS, dtype=jnp.int32),
  )
  scored = functools.partial(inspect.unwrap(scores._by_chunks), scores._scores, count=None)
  yield Program(f"search: scores of {rows:,} items, R = 8", scored, arguments, rows)


def networks(width: int = 768) -> Iterator[Program]:
  """Yields the hypernetworks: features of queries to folded queries."""
  modules = {
    "query_only": forms.query_only(width),
    "adaptive": forms.adaptive(width),
    "paper": forms.paper(width, **PAPER),
  }
  for name, module in modules.items():
    variables = jax.eval_shape(functools.partial(forms.initialise, module), jax.random.key(0))
    for queries in (1, 64, 1024):
      folded = lambda variables, query_QD, module=module: fold(module.apply(variables, query_QD))
      yield Program(f"hypernetwork: {name}, {queries} queries", folded, (variables, shape(queries, width)), queries)


def encoders() -> Iterator[Program]:
  """Yields image towers, in bfloat16."""
  for name, vision in SHAPES.items():
    tower, side = VisionTower(vision, jnp.bfloat16), vision.grid * vision.patch
    variables = jax.eval_shape(tower.init, jax.random.key(0), shape(1, side, side, 3))
    yield Program(f"encoder: {name}, 256 images", tower.apply, (variables, shape(256, side, side, 3)), 256)


def compiled(program: Program, device: Any) -> Cost:
  """Returns what a program costs on a device that need not be there; raises what the compiler raises.

  A loop's body counts once. A GPU's compiler, which cannot try kernels out here, has none of its own for some products;
  these go to cuBLAS, and what they move is not counted: nan.
  """
  placed = NamedSharding(Mesh(np.array([device]), ("one",)), PartitionSpec())
  arguments = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed), program.arguments)
  lowered = jax.jit(program.function).lower(*arguments)
  try:
    done = lowered.compile(compiler_options=dict(UNTRIED) if device.platform == "gpu" else None)
    cost = dict(done.cost_analysis() or _counted(done))
    if device.platform == "tpu":
      cost["bytes accessed"] = main_memory(done.as_text() or "")
  except jax.errors.JaxRuntimeError:
    if device.platform != "gpu":
      raise
    done = lowered.compile(compiler_options={**UNTRIED, "xla_gpu_enable_triton_gemm": False})
    before = jax.jit(program.function).trace(*program.arguments).lower(lowering_platforms=("cuda",)).cost_analysis()
    assert before is not None
    cost = {"flops": before["flops"], "bytes accessed": float("nan")}
  memory = done.memory_analysis()
  assert memory is not None
  held = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
  return Cost(cost["flops"], cost["bytes accessed"], held - memory.alias_size_in_bytes)


def main_memory(program: str) -> float:
  """Returns the bytes of main memory that a compiled TPU program (its text) reads and writes.

  XLA's own count holds the traffic of the chip's memory too, of whose arrays the layouts say S(1). Counted are the
  operands and results of every instruction but those that only name, in fused ones of the whole.
  """
  inner = set(re.findall(r"(?:calls|to_apply)=%([\w.-]+)", program))
  results: dict[str, float] = {}
  moved, whole = 0.0, True
  for line in program.splitlines():
    if header := re.match(r"(?:ENTRY )?%([\w.-]+) \(", line):
      whole = header[1] not in inner
    found = re.match(r"\s+(?:ROOT )?%([\w.-]+) = (.+?) ([a-z-]+)\((.*?)\)", line)
    if not found:
      continue
    name, made, instruction, operands = found.groups()
    shapes = re.findall(r"([a-z]+\d*)\[([\d,]*)\]((?:\{[^}]*\})?)", made)
    if instruction == "copy-start":
      shapes = shapes[:1]  # the others are its source, and a flag
    results[name] = sum(
      BYTES[kind] * math.prod(int(size) for size in sizes.split(",") if size)
      for kind, sizes, layout in shapes
      if "S(" not in layout
    )
    if whole and instruction not in NAMING:
      moved += results[name] + sum(results.get(operand, 0.0) for operand in re.findall(r"%([\w.-]+)", operands))
  return moved


def _counted(done: Any) -> dict[str, float]:
  """Returns what XLA counts in a compiled program, where the program does not know: a GPU's, without a GPU."""
  from jax._src.lib import _jax  # JAX has no public name for it

  return _jax.hlo_module_cost_analysis(jax.devices("cpu")[0].client, done.runtime_executable().hlo_modules()[0])


def device_of(target: Target) -> Any:
  """Returns a device of a target; ends the program where its compiler is not installed, or is in use."""
  name, options, wanted = target.topology, {}, "jax[tpu]"
  if target.platform == "tpu":
    # or it would ask the cloud's metadata server where it is
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}
  else:
    described = (pathlib.Path(__file__).parent / target.topology).read_text()
    name, options, wanted = "", {"target_config": described, "topology": "1x1x1"}, "jax[cuda12]"
  try:
    return topologies.get_topology_desc(platform=target.platform, topology_name=name, **options).devices[0]
  except (RuntimeError, NotImplementedError) as error:
    raise SystemExit(f"error: no compiler for {target.platform} here ({error}); pip install '{wanted}'") from error


def row(program: Program, target: Target, device: Any) -> str:
  """Returns a row of the table: a program's cost, and the least time that the target's rates allow."""
  try:
    cost = compiled(program, device)
  except jax.errors.JaxRuntimeError as error:
    why = str(error).strip().splitlines()[0]
    return f"| {program.name} | does not compile: {why[:160]} | | | | |"
  computing, moving = cost.operations / target.flops, cost.moved / target.bandwidth
  least, by = (computing, "arithmetic") if not computing < moving else (moving, "memory")
  moved = "not counted" if math.isnan(cost.moved) else f"{cost.moved / 1e9:,.4g}"
  return (
    f"| {program.name} | {cost.operations / 1e9:,.4g} | {moved} | {cost.held / GIB:,.3g} | {least * 1e3:,.3g} ({by}) | "
    f"{least / program.per * 1e6:,.3g} |"
  )


def main() -> None:
  """Prints the table."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
  parser.add_argument("--target", choices=TARGETS, default="v5e:2x2")
  parser.add_argument("--only", default="", help="programs whose names hold this")
  flags = parser.parse_args()
  target = TARGETS[flags.target]
  device = device_of(target)
  print(
    f"{flags.target}, one chip: {target.flops / 1e12:.0f} TFLOP/s in bfloat16, {target.bandwidth / 1e9:.0f} GB/s, "
    f"{target.memory / GIB:.0f} GiB; JAX {jax.__version__}\n"
  )
  print("| program | GFLOP | GB moved | GiB held | ms at least, by | µs an item, query or image |")
  print("|---|---|---|---|---|---|")
  for make in (searches, networks, encoders):
    for program in make():
      if flags.only in program.name:
        print(row(program, target, device), flush=True)


if __name__ == "__main__":
  end_on_signals(ANEW)
  main()
