"""The validation gate: which candidate of a query type serves, and the account that it gives of the choice."""

from __future__ import annotations

from typing import Any

from qat_jax.validation import Validator
from train.plan import Candidate

PARTS = {"remembering": "memory of the query", "captioned": "captions of the items", "levelled": "levelled items"}
RULE = "the simplest that is within one standard error of the best on validation"


def choose(query_type: str, fitted: dict[str, Candidate], gate: Validator) -> dict[str, Any]:
  """Returns the account of the choice among candidates, given from the simplest on; its `name` is what serves.

  By the one-standard-error rule: the best mean average precision on validation, or a simpler candidate whose loss
  against it is within one standard error of the paired difference over instances; so the frozen feature stays where
  nothing clearly gains. The account: {name, best, queries, val_map of all, steps: [{part, name, gain, error}],
  account}, the steps from the plain score to what serves, each against the one before it, and the same in words.
  """
  names = list(fitted)
  precision = [fitted[name].precision_Q for name in names]
  name = names[gate.mildest_of(precision)]
  steps, before = [], fitted["plain"].precision_Q
  for step in ladder(name, names):
    gain, error = gate.gain(fitted[step].precision_Q, before)
    steps.append({"part": part_of(step, names), "name": step, "gain": gain, "error": error})
    before = fitted[step].precision_Q
  val_map = {name: float(one.precision_Q.mean()) for name, one in fitted.items()}
  best = max(val_map, key=lambda name: val_map[name])
  chosen = {"name": name, "best": best, "queries": len(before), "val_map": val_map, "steps": steps}
  return chosen | {"account": account(query_type, chosen)}


def ladder(name: str, names: list[str]) -> list[str]:
  """Returns the candidates that lead to one, it included: the head alone, then with one part more each time."""
  below = [other for other in names if other != "plain" and name.startswith(f"{other}_") and is_parts(name, other)]
  return [*sorted(below, key=len), *([name] if name != "plain" else [])]


def is_parts(name: str, other: str) -> bool:
  """Says whether one candidate's name is the other's and then parts alone."""
  return all(part in PARTS for part in name.removeprefix(f"{other}_").split("_"))


def part_of(name: str, names: list[str]) -> str:
  """Returns what a candidate adds, in words: its last part, or the head."""
  base, _, part = name.rpartition("_")
  return PARTS[part] if part in PARTS and base in names else f"the head {name}"


def account(query_type: str, chosen: dict[str, Any]) -> str:
  """Returns a line that says what serves a query type, by which rule, and what each part adds on validation."""
  steps = "; ".join(f"{s['part']} {100 * s['gain']:+.1f} ± {100 * s['error']:.1f}" for s in chosen["steps"])
  best = "itself" if chosen["best"] == chosen["name"] else chosen["best"]
  return (
    f"{query_type} queries: {chosen['name']} serves, {RULE} ({best}; mAP × 100 of {chosen['queries']:,} queries). From "
    f"plain {100 * chosen['val_map']['plain']:.1f}: {steps or 'nothing else clearly gains'}."
  )


def others(chosen: dict[str, Any]) -> str:
  """Returns a line of what every candidate reached on validation."""
  return ", ".join(f"{name} {100 * value:.1f}" for name, value in chosen["val_map"].items())
