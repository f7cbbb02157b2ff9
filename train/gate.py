"""The validation gate: which candidate of a query type serves, and the account that it gives of the choice."""

from typing import Any

from qat_jax.fit.parts import ladder, part_of
from qat_jax.validation import Validator
from train.plan import Fitted

RULE = "the simplest that is within one standard error of the best on validation"
TOLD = "as config.aspects.ignore says, since made views keep that and cannot judge it; the best on validation"


def choose(query_type: str, fitted: dict[str, Fitted], gate: Validator, told: str | None = None) -> dict[str, Any]:
  """Returns the account of the choice among candidates, given from the simplest on; its `name` is what serves.

  By the one-standard-error rule: the best mean average precision on validation, or a simpler candidate whose loss
  against it is within one standard error of the paired difference over instances; so the frozen feature stays where
  nothing clearly gains. `told` names the candidate that serves without asking validation. The account: {name, best,
  queries, val_map of all, steps: [{part, name, gain, error}], account}, the steps from the plain score to what serves,
  each against the one before it, and the same in words.
  """
  names = list(fitted)
  precision = [fitted[name].precision_Q for name in names]
  name = told or names[gate.mildest_of(precision)]
  steps, before = [], fitted["plain"].precision_Q
  for step in [one for one in ladder(name, names) if one != "plain"]:
    gain, error = gate.gain(fitted[step].precision_Q, before)
    steps.append({"part": part_of(step), "name": step, "gain": gain, "error": error})
    before = fitted[step].precision_Q
  val_map = {name: float(one.precision_Q.mean()) for name, one in fitted.items()}
  best = max(val_map, key=lambda name: val_map[name])
  chosen = {"name": name, "best": best, "queries": len(before), "val_map": val_map, "steps": steps}
  chosen |= {"told": True} if told else {}
  return chosen | {"account": account(query_type, chosen)}


def account(query_type: str, chosen: dict[str, Any]) -> str:
  """Returns a line that says what serves a query type, by which rule, and what each part adds on validation."""
  steps = "; ".join(f"{s['part']} {100 * s['gain']:+.1f} ± {100 * s['error']:.1f}" for s in chosen["steps"])
  best, rule = "itself" if chosen["best"] == chosen["name"] else chosen["best"], TOLD if chosen.get("told") else RULE
  return (
    f"{query_type} queries: {chosen['name']} serves, {rule} ({best}; mAP × 100 of {chosen['queries']:,} queries). From "
    f"plain {100 * chosen['val_map']['plain']:.1f}: {steps or 'nothing else clearly gains'}."
  )


def others(chosen: dict[str, Any]) -> str:
  """Returns a line of what every candidate reached on validation."""
  return ", ".join(f"{name} {100 * value:.1f}" for name, value in chosen["val_map"].items())
