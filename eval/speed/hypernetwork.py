"""How long the networks that make the maps take; for `python -m eval.speed.latency --hypernetwork`."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from eval.speed.ways import Way
from qat_jax.models.forms import adaptive, initialise
from qat_jax.models.quari import Released

RELEASED: dict[str, Any] = {"hidden": 512, "rank": 64, "layers": 6, "steps": 4, "heads": 8} | {
  "anchor_scale": 0.8,
  "query_residual": 0.5,
  "frobenius_norm": True,
}
DEMO_WIDTH = 96


def ways(queries: int) -> dict[str, Way]:
  """Returns the networks by name, each adapting Q random queries with random weights."""
  modules: dict[str, nn.Module] = {
    "released, R+1 tokens": Released(768, **RELEASED),
    "released, 2R+1 tokens": Released(768, **RELEASED, shared_tokens=False),
    "released, R+1 tokens, bfloat16": Released(768, **RELEASED, dtype="bfloat16"),
    "demo (adaptive)": adaptive(DEMO_WIDTH),
  }
  return {name: network_way(module, queries) for name, module in modules.items()}


def network_way(module: nn.Module, queries: int) -> Way:
  """Returns one network as a way, compiled; its operations are XLA's count before optimisation."""
  variables = initialise(module, jax.random.key(0))
  query_QD = jax.random.normal(jax.random.key(1), (queries, module.width), jnp.float32)
  lowered = jax.jit(module.apply).lower(variables, query_QD)
  call = lowered.compile()
  size = sum(x.nbytes for x in jax.tree.leaves(variables))
  cost = lowered.cost_analysis() or {"flops": float("nan")}  # None where the backend does not count
  return Way(lambda: jax.block_until_ready(call(variables, query_QD)), 1, size, cost["flops"])


def table(rows: list[dict]) -> str:
  """Returns the rows of `eval.speed.latency.compare` as a Markdown table.

  The machine's rate is that of a float32 product of 2048×2048 matrices, measured in turn with the networks.
  """
  lines = ["| network | Q | ms a query | times the first | GFLOP/s | of the product's |", "|---|---|---|---|---|---|"]
  for row in rows:
    rate = row["gflop"] / (row["ms_per_query"] * row["queries"] / 1e3)
    lines.append(
      f"| {row['name']} | {row['queries']} | {row['ms_per_query']:.2f} | "
      f"{row['ms_per_query'] / rows[0]['ms_per_query']:.2f} | {rate:.1f} | {rate / row['product_gflop_s']:.0%} |"
    )
  return "\n".join(lines)
