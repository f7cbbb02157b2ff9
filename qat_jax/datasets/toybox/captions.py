"""Says what a toy looks like, in words and in detail that vary from view to view.

A detailed caption names most attributes, each in one of three words, as people who know a field do. A coarse one, such
as the demo's encoder is trained on, names a part or two in plain words; the third of each value's words it never meets.
Both tell at times of the scene, which is another in every view of a toy: whoever looks for the toy has to look past it.
What a caption says is always true.
"""

import zlib
from collections.abc import Callable

import numpy as np

from qat_jax.datasets.toybox.objects import Toy
from qat_jax.datasets.toybox.render import scene

# Value → its words: the plain one, another, and one that only people who know the field use.
WORDS = {
  "red": ("red", "crimson", "scarlet"),
  "orange": ("orange", "tangerine", "apricot"),
  "yellow": ("yellow", "lemon", "golden"),
  "green": ("green", "emerald", "olive"),
  "blue": ("blue", "azure", "navy"),
  "purple": ("purple", "violet", "plum"),
  "pink": ("pink", "rose", "salmon"),
  "brown": ("brown", "chocolate", "umber"),
  "white": ("white", "snowy", "ivory"),
  "black": ("black", "dark", "ebony"),
  "circle": ("circle", "disc", "ball"),
  "square": ("square", "box", "block"),
  "triangle": ("triangle", "pyramid", "delta"),
  "star": ("star", "asterisk", "sparkle"),
  "cross": ("cross", "plus", "crosslet"),
  "heart": ("heart", "valentine", "cardioid"),
  "moon": ("moon", "crescent", "sickle"),
  "arrow": ("arrow", "pointer", "chevron"),
  "plain": ("plain", "solid", "even"),
  "striped": ("striped", "banded", "lined"),
  "dotted": ("dotted", "spotted", "speckled"),
  "checked": ("checked", "tiled", "chequered"),
  "framed": ("framed", "bordered", "outlined"),
  "above": ("above", "on top", "over it"),
  "below": ("below", "underneath", "beneath"),
  "left": ("on the left", "to its left", "westward"),
  "right": ("on the right", "to its right", "eastward"),
  "dot": ("dot", "spot", "speck"),
  "bar": ("bar", "dash", "strip"),
  "ring": ("ring", "hoop", "loop"),
  "wedge": ("wedge", "chip", "shard"),
}
OPENINGS = ("", "", "a photo of ", "a picture of ", "here is ", "a toy made of ")
JOINS = (" with ", ", with ", " and ", ", ")
CENTRES = ("in the middle", "at its centre", "on it")
# What sellers and collectors write beside what is to be seen.
ASIDES = (
  *("vintage", "handmade", "collectible", "brand new", "slightly worn", "for sale", "gift idea", "museum piece"),
  *("item of the week", "in stock"),
)
# What is behind a toy: how light the ground is (up to 118 of 255 shady, above 170 sunny), of which tint, and clutter.
LIGHTS, LIGHTER = ("shady", "misty", "sunny"), (118, 170)
TINTS = (("minty", "mauve", "sandy"), ("rusty", "mossy", "bluish"))  # with less, or more, of red, green, blue
CLUTTER = ("alone", "", "", "among scraps", "among scraps")  # for so many pieces; few are not worth a word
COARSE_SCENE, DETAILED_SCENE = 0.4, 0.6  # how often a caption says each thing of the scene
OTHER = 0.3  # how often a coarse caption takes the second of a value's words
RARE = 0.2  # how often a detailed one takes the third
BEFORE, AFTER = 0.3, 0.3  # how often a detailed one begins or ends with an aside


def detailed(toy: Toy, view: int) -> str:
  """Returns a view's caption: the main shape, mostly its colour and texture, the other parts, the scene, an aside."""
  rng = np.random.Generator(np.random.Philox(key=[zlib.crc32(toy.name.encode()), 2**32 + view]))
  say = lambda value: WORDS[value][2] if rng.random() < RARE else _pick(rng, WORDS[value][:2])
  main = _phrase(rng, say, (toy.colour, 0.9), (toy.texture, 0.8), (toy.kind, 0.95))
  parts = []
  if rng.random() < 0.95:
    side = _phrase(rng, say, (toy.side_colour, 0.9), (toy.side_kind, 0.9))
    parts.append(f"{side} {say(toy.side_place)}" if rng.random() < 0.55 else side)
  if rng.random() < 0.85:
    mark = _phrase(rng, say, (toy.mark_colour, 0.9), (toy.mark_kind, 0.9))
    parts.append(f"{mark} {_pick(rng, CENTRES)}")
  if len(parts) == 2 and rng.random() < 0.4:
    parts.reverse()
  caption = _pick(rng, OPENINGS) + main
  for part in parts:
    caption += _pick(rng, JOINS) + part
  caption += _scene(rng, DETAILED_SCENE, *scene(toy, view))
  if rng.random() < BEFORE:
    caption = f"{_pick(rng, ASIDES)}, {caption}"
  return f"{caption}, {_pick(rng, ASIDES)}" if rng.random() < AFTER else caption


def coarse(toy: Toy, view: int, picture: int | None = None) -> str:
  """Returns a short caption in plain words: the main shape, now and then its texture or one small part; the scene.

  The scene is of the view `picture`, if given; `view` then chooses the words alone.
  """
  rng = np.random.Generator(np.random.Philox(key=[zlib.crc32(toy.name.encode()), 2**33 + view]))
  say = lambda value: WORDS[value][rng.random() < OTHER]
  caption = _pick(rng, OPENINGS) + _phrase(rng, say, (toy.colour, 0.8), (toy.texture, 0.3), (toy.kind, 0.8))
  chance = rng.random()
  if chance < 0.4:
    side = _phrase(rng, say, (toy.side_colour, 0.8), (toy.side_kind, 0.8))
    caption += _pick(rng, JOINS) + (f"{side} {say(toy.side_place)}" if rng.random() < 0.4 else side)
  elif chance < 0.7:
    caption += _pick(rng, JOINS) + _phrase(rng, say, (toy.mark_colour, 0.8), (toy.mark_kind, 0.8))
  return caption + _scene(rng, COARSE_SCENE, *scene(toy, view if picture is None else picture))


def light_and_tint(ground: np.ndarray) -> tuple[str, str]:
  """Returns the words for a ground's mean colour (3, 0 to 255): how light it is, and its tint."""
  tint = ground - ground.mean()
  furthest = int(np.abs(tint).argmax())
  return LIGHTS[int(np.searchsorted(LIGHTER, float(ground.mean())))], TINTS[int(tint[furthest] > 0)][furthest]


def _scene(rng: np.random.Generator, share: float, ground: np.ndarray, clutter: int) -> str:
  """Returns what of the scene chance lets in."""
  words = [word for word in light_and_tint(ground) if rng.random() < share]
  phrase = f", on {' '.join(words)} ground" if words else ""
  return f"{phrase}, {CLUTTER[clutter]}" if rng.random() < share and CLUTTER[clutter] else phrase


def vocabulary() -> list[str]:
  """Returns every word that captions are made of."""
  scenes = (*LIGHTS, *TINTS[0], *TINTS[1], *CLUTTER, "on ground")
  values = (word for words in WORDS.values() for word in words)
  pieces = (*OPENINGS, *JOINS, *CENTRES, *ASIDES, *scenes, "a an shape", *values)
  return sorted({word for piece in pieces for word in piece.replace(",", " ").split()})


def _pick(rng: np.random.Generator, choices: tuple[str, ...]) -> str:
  return choices[int(rng.integers(len(choices)))]


def _phrase(rng: np.random.Generator, say: Callable[[str], str], *mentions: tuple[str, float]) -> str:
  """Returns the values that chance lets in, in their order; the last, the kind, is else "shape"."""
  words = [say(value) for value, share in mentions[:-1] if rng.random() < share]
  kind, share = mentions[-1]
  # A phrase always says something: without adjectives the kind is named.
  words.append(say(kind) if rng.random() < share or not words else "shape")
  return " ".join(["an" if words[0][0] in "aeiou" else "a", *words])
