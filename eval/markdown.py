"""Tables in Markdown."""

from collections.abc import Sequence


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]], numbers: bool = False) -> str:
  """Returns a table; with `numbers`, all columns but the first are aligned to the right."""
  rule = ["---", *["---:" if numbers else "---"] * (len(head) - 1)]
  return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, rule, *lines])
