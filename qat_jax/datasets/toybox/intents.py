"""Two intents over one gallery of toys: the ground that a toy lies on says what its picture asks for.

On light ground a toy asks for toys of its shape (its kind, and where its side part is) in any colours, on dark ground
for toys of its colours in any shape. The gallery is that of another config. Both pictures of a toy have the same pose
and clutter: the ground alone differs. No map that is the same for all queries can answer both.
"""

import collections
from collections.abc import Sequence
from typing import Any

from qat_jax.datasets.toybox import source as toybox
from qat_jax.datasets.toybox.objects import Toy, families
from qat_jax.datasets.toybox.render import as_jpeg, render

VIEW = 3000  # the view of a toy that asks; no gallery has it
# What asks for what: the range of the ground's mean lightness (0 to 255), and the attributes that relevant toys share.
# The demo's encoder sees these attributes, and not, say, the kind of the part beside (docs/notes/results.md).
INTENTS = {
  "shape": ((185.0, 220.0), ("kind", "side_place")),
  "colours": ((40.0, 80.0), ("colour", "side_colour")),
}


class Queries:
  """Random access to queries: each toy on light ground, then on dark; `relevant` has the ids that are right for it."""

  def __init__(self, toys: Sequence[Toy], gallery: Sequence[tuple[Toy, str]]) -> None:
    """Takes the toys that ask, and each item of the gallery as its toy and its id."""
    self.toys = toys
    self.ids: dict[str, dict[tuple[str, ...], list[str]]] = {}
    for intent in INTENTS:
      self.ids[intent] = collections.defaultdict(list)
      for toy, item in gallery:
        self.ids[intent][shared(toy, intent)].append(item)

  def __len__(self) -> int:
    return len(INTENTS) * len(self.toys)

  def __getitem__(self, position: int) -> dict[str, Any]:
    """Returns the record of a query: id, image (encoded), caption (none), instance, intent, relevant."""
    number, which = divmod(position, len(INTENTS))
    toy, intent = self.toys[number], tuple(INTENTS)[which]
    image = as_jpeg(render(toy, VIEW, INTENTS[intent][0]))
    names = {"id": f"{toy.name}_{intent}", "instance": toy.name, "intent": intent}
    return {**names, "image": image, "caption": None, "relevant": self.ids[intent][shared(toy, intent)]}


def shared(toy: Toy, intent: str) -> tuple[str, ...]:
  """Returns what toys that are relevant to a toy's picture share with it."""
  return tuple(getattr(toy, attribute) for attribute in INTENTS[intent][1])


def places(config: str = "default", most: int = 1 << 30) -> dict[str, tuple[Any, tuple[str, ...]]]:
  """Returns place → (source, kinds of feature) of the retrieval set, its galleries those of a config of the toybox.

  Of each part, `most` toys ask at the most.
  """
  about = toybox.CONFIGS[config]
  sizes = {
    "train": ("train", about.train_views, None),
    "val": ("val_gallery", about.gallery_views, about.gallery_members),
    "test": ("test_gallery", about.gallery_views, about.gallery_members),
  }
  folders: dict[str, tuple[Any, tuple[str, ...]]] = {}
  for part, (split, views, members) in sizes.items():
    of_families = [families()[number] for number in about.parts()[part]]
    there = [toy for family in of_families for toy in family[:members]]
    gallery = [(toy, f"{toy.name}_{view}") for toy in there for view in range(views)]
    asking = [toy for family in of_families for toy in family[: about.queried]]
    folders["train" if part == "train" else f"{part}/gallery"] = (toybox.source(split, config), ("img",))
    asking = asking[:: -(-len(asking) // most)]
    folders[f"{part}/image_queries"] = (Queries(asking, gallery), ("img",))
  return folders
