"""What the toybox holds: small objects of three parts, in families whose members differ in one attribute.

An object is a big shape with a texture, a smaller shape beside it, and a mark in its middle. All objects come from one
list that is a pure function of nothing, so a family has the same members in every split and on every machine.
"""

import dataclasses
import functools

import numpy as np

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown")
ATTRIBUTES = {
  "kind": ("circle", "square", "triangle", "star", "cross", "heart", "moon", "arrow"),
  "colour": COLOURS,
  "texture": ("plain", "striped", "dotted", "checked", "framed"),
  "side_kind": ("circle", "square", "triangle", "star", "cross", "heart"),
  "side_colour": COLOURS,
  "side_place": ("above", "below", "left", "right"),
  "mark_kind": ("dot", "bar", "ring", "wedge"),
  "mark_colour": ("white", "black", "yellow", "blue", "red", "green"),
}
FAMILY_SIZE = 4
FAMILIES = 12_000


@dataclasses.dataclass(frozen=True)
class Toy:
  """One instance: its name, its family's, and its attributes."""

  name: str
  family: str
  kind: str
  colour: str
  texture: str
  side_kind: str
  side_colour: str
  side_place: str
  mark_kind: str
  mark_colour: str

  def attributes(self) -> dict[str, str]:
    """Returns attribute → value, without the names."""
    return {attribute: getattr(self, attribute) for attribute in ATTRIBUTES}


@functools.cache
def families() -> tuple[tuple[Toy, ...], ...]:
  """Returns all families; the members of one differ in one attribute, and no two toys look the same."""
  rng = np.random.Generator(np.random.Philox(key=2026))
  names = list(ATTRIBUTES)
  seen: set[tuple[str, ...]] = set()
  everything: list[tuple[Toy, ...]] = []
  while len(everything) < FAMILIES:
    base = {name: str(rng.choice(values)) for name, values in ATTRIBUTES.items()}
    varied = names[int(rng.integers(len(names)))]
    values = rng.permutation(ATTRIBUTES[varied])[:FAMILY_SIZE]
    members = [base | {varied: str(value)} for value in values]
    looks = [tuple(member.values()) for member in members]
    if any(member["mark_colour"] == member["colour"] for member in members) or not seen.isdisjoint(looks):
      continue
    seen.update(looks)
    family = f"family{len(everything):04d}"
    everything.append(tuple(Toy(f"{family}_{i}", family, **member) for i, member in enumerate(members)))
  return tuple(everything)
