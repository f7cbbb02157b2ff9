"""An ensemble where one is asked for: a head trained from several seeds, and the average of them."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence

from qat_jax.models.head import Head
from train.loop import LoopSettings

SEEDS_APART = 1_000_003  # of a run's members, so that runs with seeds 0, 1, 2 share none


def by_members(
  fit: Callable[[LoopSettings, pathlib.Path], Head], members: int, schedule: LoopSettings, folder: pathlib.Path
) -> Head:
  """Returns the average of so many heads that `fit` trains, each from a seed and with checkpoints of its own.

  Where the first is stopped, with no prospect of winning, it is returned alone: a few more would only take time.
  """
  first = fit(schedule, folder)
  if first.note:
    return first
  heads = [first]
  for member in range(1, members):
    apart = schedule._replace(seed=schedule.seed + SEEDS_APART * member, target=None)
    heads.append(fit(apart, folder / f"{folder.name}_{member}"))
  return averaged(heads)


def averaged(heads: Sequence[Head]) -> Head:
  """Returns the head that is the average of several of one form, none of which maps the gallery."""
  form, settings = heads[0].form, heads[0].settings
  assert all((head.form, head.settings) == (form, settings) for head in heads)
  variables = {
    kind: {f"members_{k}": head.variables[kind] for k, head in enumerate(heads) if head.variables[kind]}
    for kind in ("params", "constants")
  }
  settings = {"form": form, "settings": settings, "members": len(heads)}
  return Head("ensemble", settings, variables, f"average of {len(heads)} seeds")
