"""A byte-pair vocabulary in which given words are one token each; any other text falls apart into bytes."""

import itertools
import pathlib
from collections import Counter
from typing import Any

from qat_jax import stages as files

START, END = "<|startoftext|>", "<|endoftext|>"


def write_tokenizer(folder: pathlib.Path, words: list[str], tokens: int) -> Any:
  """Writes a CLIP tokenizer's files into `folder` and returns the tokenizer as `load_encoder` will open it.

  Args:
    words: what gets a token of its own, lower case.
    tokens: the longest text that the encoder takes.
  """
  from transformers import CLIPTokenizerFast

  letters = byte_letters()
  merges = byte_pairs(words)
  vocabulary = letters + [f"{letter}</w>" for letter in letters] + ["".join(pair) for pair in merges] + [START, END]
  files.write_json(folder / "vocab.json", {token: number for number, token in enumerate(vocabulary)})
  lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
  files.write_whole(folder / "merges.txt", ("\n".join(lines) + "\n").encode())
  tokenizer = CLIPTokenizerFast.from_pretrained(folder, model_max_length=tokens)
  tokenizer.save_pretrained(folder)
  return tokenizer


def byte_letters() -> list[str]:
  """Returns the letters that byte-level vocabularies write the 256 bytes as, in the order of CLIP's vocabulary.

  Printable bytes come first, as they are; the others are letters from 256 on.
  """
  printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
  return [chr(code) for code in (*printable, *range(256, 512 - len(printable)))]


def byte_pairs(words: list[str]) -> list[tuple[str, str]]:
  """Returns the merges, in order, that make every word one token: always the commonest pair, ties by alphabet."""
  split = [[*word[:-1], word[-1] + "</w>"] for word in sorted(set(words))]
  merges: list[tuple[str, str]] = []
  while any(len(parts) > 1 for parts in split):
    counts = Counter(pair for parts in split for pair in itertools.pairwise(parts))
    best = min(counts, key=lambda pair: (-counts[pair], pair))
    merges.append(best)
    split = [_merged(parts, best) for parts in split]
  return merges


def _merged(parts: list[str], pair: tuple[str, str]) -> list[str]:
  merged: list[str] = []
  for part in parts:
    if merged and (merged[-1], part) == pair:
      merged[-1] += part
    else:
      merged.append(part)
  return merged
