"""The validation gate: which candidate serves a query type."""

from __future__ import annotations

from qat_jax.adapter import Adapter, Head


def choose(fitted: dict[str, Adapter]) -> tuple[Head, dict]:
  """Returns the head that serves, and an account of the choice: {name, val_map of all}.

  The best mean average precision on validation wins, but the frozen feature stays unless the gain over it is more than
  one standard error of the paired difference over queries: a small validation set can flatter.
  """
  best = max(fitted, key=lambda name: fitted[name].info["val_map"])
  gain, error = fitted[best].info["gain_over_plain"]
  name = best if gain > error else "plain"
  (head,) = fitted[name].heads.values()
  return head, {"name": name, "val_map": {name: adapter.info["val_map"] for name, adapter in fitted.items()}}
