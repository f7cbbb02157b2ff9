"""Ensembles: a head is trained from several seeds and averaged."""

import pathlib
from collections.abc import Callable, Sequence

from qat_jax.models.head import Head
from train.loop import LoopSettings

SEEDS_APART = 1_000_003  # distance of the members' seeds, so that runs with seeds 0, 1, 2 share none


def by_members(
  fit: Callable[[LoopSettings, pathlib.Path], Head], members: int, schedule: LoopSettings, folder: pathlib.Path
) -> Head:
  """Returns the average of several heads, each trained from its own seed.

  If the first is stopped because it cannot win, it is returned alone: more members would only take time.

  Args:
    fit: trains a head with a schedule, in a folder.
    members: the number of heads.
    schedule: that of the first head.
    folder: that of the first head; the others have folders inside it.
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
