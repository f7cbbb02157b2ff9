"""The parts that are tried beside a head, and how candidates are named by them: `query_only_remembering_levelled`."""

from collections.abc import Collection

import jax

from qat_jax.models.head import Head

PARTS = {"remembering": "memory of the query", "captioned": "captions of the items", "levelled": "levelled items"}


def with_part(name: str, part: str) -> str:
  """Returns the name of a candidate with one part more.

  >>> with_part("query_only", "levelled")
  'query_only_levelled'
  """
  assert part in PARTS
  return f"{name}_{part}"


def head_of(name: str) -> str:
  """Returns the name of a candidate's head, without the parts beside it.

  >>> head_of("query_only_remembering_levelled"), head_of("gated_mapped")
  ('query_only', 'gated_mapped')
  """
  words = name.split("_")
  while words[-1] in PARTS:
    words.pop()
  return "_".join(words)


def ladder(name: str, names: Collection[str]) -> list[str]:
  """Returns those of the candidates that lead to one, it included: its head, then one with more parts each time.

  >>> ladder("head_remembering_levelled", ["plain", "head", "head_levelled", "head_remembering"])
  ['head', 'head_remembering', 'head_remembering_levelled']
  """
  below = [other for other in names if name.startswith(f"{other}_") and head_of(other) == head_of(name)]
  return [*sorted(below, key=len), name]


def part_of(name: str) -> str:
  """Returns what a candidate adds to the one before it, in words: its last part, or the head.

  >>> part_of("query_only_levelled"), part_of("gated_mapped")
  ('levelled items', 'the head gated_mapped')
  """
  return PARTS.get(name.rpartition("_")[2], f"the head {name}")


def beside(head: Head, constants: dict[str, jax.Array]) -> dict:
  """Returns the variables of a form around another one: those of the other, and constants of its own."""
  inner = {name: {"head": tree} if tree else {} for name, tree in head.variables.items()}
  return inner | {"constants": inner.get("constants", {}) | constants}
