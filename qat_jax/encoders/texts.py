"""What texts become before they go into a tower: the tokens that its checkpoint was trained with."""

from __future__ import annotations

import codecs
import pathlib
import string
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from qat_jax.encoders.files import read_object, refuse_pointer


def mended(text: str) -> str:
  """Returns a text as OpenCLIP reads it: mojibake, typographic quotes and HTML's entities made plain."""
  import html

  try:
    import ftfy
  except ImportError as error:
    raise ImportError(
      "OpenCLIP's texts are mended by ftfy; install it with: pip install 'qat-jax[encoders]'"
    ) from error
  return html.unescape(html.unescape(ftfy.fix_text(text)))


def _bare(text: str) -> str:
  """Returns a text without ASCII's punctuation; an underscore counts as a space."""
  return text.translate({**dict.fromkeys(map(ord, string.punctuation)), ord("_"): " "})


# What is done to a text before its tokenizer reads it. SigLIPs were trained on lower-cased text, and not every
# tokenizer of theirs sees to it; OpenCLIP removes punctuation for them, transformers does not.
CLEANING: dict[str, Callable[[str], str]] = {
  "": lambda text: text,
  "lower case": lambda text: text.lower(),
  "whitespace": lambda text: " ".join(mended(text).split()),
  "lower": lambda text: " ".join(mended(text).split()).lower(),
  "canonicalize": lambda text: " ".join(_bare(mended(text)).lower().split()),
}


class TextTokens:
  """A checkpoint's tokenizer: texts → ids padded to the text tower's length.

  Args:
    tokenizer: transformers' own, with a padding token.
    length: how many tokens the text tower takes.
    words: how many ids the text tower knows.
    cleaning: what is done to texts first, one of CLEANING.
    where: the folder, for errors.
    pad: the id that fills up short texts, as OpenCLIP's own tokenizer has it, to which no text is a special token;
      None: the tokenizer's own.
  """

  def __init__(
    self, tokenizer: Any, length: int, words: int, cleaning: str, where: str, pad: int | None = None
  ) -> None:
    self._tokenizer, self.length, self._clean = tokenizer, length, CLEANING[cleaning]
    self._words, self._where, self._pad = words, where, pad

  def __call__(self, texts: Sequence[str]) -> tuple[np.ndarray, int]:
    """Returns the ids (int32, BL) and how many texts were longer than the tower takes and cut."""
    texts = [self._clean(text) for text in texts]
    whole = self._ids(texts, truncation=False, verbose=False)["input_ids"]
    cut = [number for number, ids in enumerate(whole) if len(ids) > self.length]
    padded = self._ids(texts, padding="max_length", max_length=self.length, truncation=True, return_tensors="np")
    ids_BL = padded["input_ids"].astype(np.int32)
    if self._pad is not None:
      ids_BL = np.where(padded["attention_mask"], ids_BL, self._pad)
    if ids_BL.max(initial=0) >= self._words:  # JAX would take the last word instead
      raise ValueError(
        f"the tokenizer of {self._where!r} gives the id {ids_BL.max()}, and its text tower knows {self._words}; take "
        "the tokenizer and the weights from one checkpoint"
      )
    return ids_BL, len(cut)

  def check_end(self, end: int | None) -> None:
    """Raises ValueError unless texts end with a token: `end`, or where that is None, the tokenizer's own if known."""
    wanted = self._tokenizer.get_vocab().get(self._tokenizer.eos_token) if end is None else end
    got = self._ids(["a"])["input_ids"][0][-1]
    if wanted is not None and got != wanted:
      raise ValueError(
        f"the tokenizer of {self._where!r} ends a text with the id {got}, wanted the end token {wanted}, where the "
        "feature is taken; take config.json and the tokenizer's files from one checkpoint"
      )

  def is_cut(self, text: str) -> bool:
    """Says whether a text is longer than the tower takes."""
    return len(self._ids([self._clean(text)], truncation=False, verbose=False)["input_ids"][0]) > self.length

  def _ids(self, texts: Sequence[str], **how: Any) -> Any:
    return self._tokenizer(texts, split_special_tokens=self._pad is not None, **how)


def read_tokens(folder: pathlib.Path, family: str, length: int, words: int, config: Any = None) -> TextTokens:
  """Returns the tokenizer of a checkpoint, tried on one text.

  Args:
    folder: of the checkpoint.
    family: such as "clip".
    length: how many tokens the text tower takes.
    words: how many ids it knows.
    config: of OpenCLIP's own, which says how its texts are cleaned.

  Raises:
    FileNotFoundError: the tokenizer's files are missing or cannot be read.
    ValueError: a file is a Git LFS pointer or no JSON, or no token pads texts.
  """
  settings = _settings(folder)
  siglip = family in ("siglip", "siglip2")
  cleaning, pad = "lower case" if siglip else "", None
  if family.startswith("open_clip"):
    cleaning, pad = config.clean, config.pad
    if cleaning not in CLEANING:
      raise ValueError(f"{folder}: tokenizer_kwargs clean is {cleaning!r}; wanted one of {', '.join(CLEANING)}")
  try:
    tokenizer = _tokenizer(folder, settings)
  except Exception as error:  # for files that are missing or broken transformers has any kind, TypeError among them
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    file = "tokenizer.json: " if (folder / "tokenizer.json").is_file() else ""
    raise FileNotFoundError(
      f"the folder {str(folder)!r} has no tokenizer that can be read ({file}{reason}); wanted tokenizer.json, or "
      "vocab.json with merges.txt: copy them from the checkpoint"
    ) from error
  if tokenizer.pad_token is None:
    tokenizer.pad_token = _padding(folder, family, tokenizer, settings)
  tokens = TextTokens(tokenizer, length, words, cleaning, str(folder), pad)
  tokens(["a"])  # so that a file that does not fit is told now, not at the first text
  return tokens


def _settings(folder: pathlib.Path) -> dict[str, str]:
  """Returns the padding and end tokens that the tokenizer's files name, of which the first that names one counts.

  A token is written as its text or as an object with its text as `content`.
  """
  whole = (folder / "tokenizer.json").is_file()
  for name in ("tokenizer.json",) if whole else ("vocab.json", "merges.txt", "spiece.model", "tokenizer.model"):
    if (folder / name).is_file():
      refuse_pointer(folder / name)
      if not (folder / name).stat().st_size:
        raise ValueError(f"{folder / name} is empty; fetch it again")
  tokens: dict[str, str] = {}
  for path in (folder / "tokenizer_config.json", folder / "special_tokens_map.json"):
    known = read_object(path) if path.is_file() else {}
    for key in ("pad_token", "eos_token"):
      token = known.get(key)
      token = token.get("content") if isinstance(token, dict) else token
      if isinstance(token, str) and token:
        tokens.setdefault(key, token)
  return tokens


def _padding(folder: pathlib.Path, family: str, tokenizer: Any, settings: dict[str, str]) -> str:
  """Returns the token that fills up short texts, where the tokenizer's own settings name none.

  It is that of tokenizer.json's padding, or what transformers' class for the family takes: the end of the text, and
  <pad> in Gemma's vocabulary, which SigLIP 2 has. Raises ValueError where the vocabulary has none of them.
  """
  words, path = tokenizer.get_vocab(), folder / "tokenizer.json"
  padding = read_object(path).get("padding") if path.is_file() else None
  candidates = [padding.get("pad_token")] if isinstance(padding, dict) else []
  if family in ("siglip", "siglip2"):
    candidates += ["<pad>", "<eos>"] if "<bos>" in words else ["</s>"]
  candidates += ["<|endoftext|>", settings.get("eos_token")]
  token = next((token for token in candidates if token and token in words), None)
  if token is None:
    raise ValueError(
      f"the tokenizer in {str(folder)!r} names no token that pads texts; write it as pad_token in tokenizer_config.json"
    )
  return token


def _tokenizer(folder: pathlib.Path, settings: dict[str, str]) -> Any:
  """Returns transformers' tokenizer; tokenizer.json as it lies, whatever its class in this version would change.

  The class that a checkpoint names may want SentencePiece, or rebuild the tokenizer by rules of its own.
  """
  from transformers import AutoTokenizer, PreTrainedTokenizerFast

  path = folder / "tokenizer.json"
  if not path.is_file():
    files = ("vocab.json", "merges.txt", "spiece.model", "tokenizer.model")
    if not any((folder / name).is_file() for name in files):  # of which transformers 5 makes a tokenizer without words
      raise FileNotFoundError(f"neither tokenizer.json nor one of {', '.join(files)}")
    return AutoTokenizer.from_pretrained(folder)
  text = path.read_bytes()
  if text.startswith(codecs.BOM_UTF8):
    from tokenizers import Tokenizer

    return PreTrainedTokenizerFast(
      tokenizer_object=Tokenizer.from_buffer(text.removeprefix(codecs.BOM_UTF8)), **settings
    )
  return PreTrainedTokenizerFast(tokenizer_file=str(path), **settings)
