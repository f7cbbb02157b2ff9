"""What differs between the towers of the families."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Rope:
  """Rotary positions: along a side of n places, place i has (start + span · (i + offset) / n) / theta^(k/F) at k."""

  theta: float
  offset: float
  span: float
  start: float = 0.0
  columns_first: bool = False  # the first half of a head's angles is of the column
  neighbours: bool = False  # what turns together lies side by side; else half a head apart


@dataclasses.dataclass(frozen=True)
class Layers:
  """A stack of pre-norm transformer layers."""

  width: int
  layers: int
  heads: int
  feed_forward: int  # what the second dense layer of an MLP takes
  activation: str  # one of tower.ACTIVATIONS
  epsilon: float  # of every LayerNorm in the tower
  causal: bool = False
  layer_scale: bool = False  # a learned factor a channel after attention and after the MLP
  gated: bool = False  # the MLP's first layer gives twice `feed_forward`: the activation of one half times the other
  rope: Rope | None = None  # turns queries and keys of patches
  without_bias: tuple[str, ...] = ()  # what a checkpoint's dense layers without bias are called; ours is zero there


@dataclasses.dataclass(frozen=True)
class Vision:
  """An image tower."""

  blocks: Layers
  patch: int  # side, pixels
  grid: int  # side of the position table; without a table of the pictures of training
  pool: str  # "class": a class token; "attention": a learned probe looks at all tokens; "mean": of the patches
  projection: int = 0  # width of the feature; 0: the tower's own, not projected
  patch_bias: bool = True
  pre_norm: bool = False  # a LayerNorm before the first layer
  registers: int = 0  # tokens without position that are thrown away
  resampling: str = "cubic"  # of the position table for images of another size: positions.KERNELS
  class_token: bool | None = None  # None: where `pool` is "class"
  table: bool = True  # whether positions are learned and added
  norm_pooled: bool = False  # the last LayerNorm comes after the mean
  projection_bias: bool = False
  probe: tuple[int, int] = (0, 0)  # heads and `feed_forward` of the pooling; 0: as in the layers
  patches: int = 0  # how many there are at most where every picture has a grid of its own; 0: all are squares

  @property
  def width(self) -> int:
    """Returns the width of the feature."""
    return self.projection or self.blocks.width

  @property
  def classes(self) -> int:
    """Returns how many class tokens there are, 0 or 1."""
    return int(self.pool == "class" if self.class_token is None else self.class_token)

  @property
  def tokens(self) -> int:
    """Returns how many tokens an image has: the most, or those of a square of the table's size."""
    return self.classes + self.registers + (self.patches or self.grid**2)

  @property
  def pooling(self) -> Layers:
    """Returns the settings of the learned probe's attention and MLP."""
    heads, feed_forward = self.probe
    plain = dataclasses.replace(self.blocks, causal=False, gated=False, rope=None, without_bias=())
    return dataclasses.replace(
      plain, heads=heads or self.blocks.heads, feed_forward=feed_forward or self.blocks.feed_forward
    )


@dataclasses.dataclass(frozen=True)
class Text:
  """A text tower."""

  blocks: Layers
  words: int
  tokens: int
  pool: str  # "largest": where the largest id stands; "end": at the first end token; "last", "first": a position
  projection: int  # 0: not projected
  end: int = 0
  projection_bias: bool = False
  logit_bias: bool = False  # whether the checkpoint holds a bias of the logits

  @property
  def width(self) -> int:
    """Returns the width of the feature."""
    return self.projection or self.blocks.width
