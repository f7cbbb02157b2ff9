"""Writes a released checkpoint in our own format: python -m qat_jax.convert hf://owner/name adapters/mine."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys

from qat_jax.adapter import Adapter, load


def convert(
  source: str | os.PathLike, folder: str | os.PathLike, revision: str | None = None, dtype: str = "float32"
) -> Adapter:
  """Writes the released checkpoint in `source` (a folder or hf://owner/name) to `folder`; returns the adapter.

  `dtype` is of the network's matrix products: float32 or bfloat16. The numbers are kept in float32.
  Raises ValueError if the source is not a released checkpoint; and what `qat_jax.load` raises.
  """
  adapter = load(source, revision)
  for name, head in adapter.heads.items():
    if head.form != "released":
      raise ValueError(f"{source} has the form {head.form!r} for {name} queries: it is no released checkpoint")
  heads = {n: dataclasses.replace(h, settings=h.settings | {"dtype": dtype}) for n, h in adapter.heads.items()}
  converted = Adapter(adapter.width, heads, adapter.info)
  converted.save(folder)
  return converted


def main() -> None:
  """Parses flags; `convert` does the work."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("source", help="a folder with config.yml and weights.pt, or hf://owner/name")
  parser.add_argument("folder", help="where to write the adapter")
  parser.add_argument("--revision", help="of the hub's repository; the newest by default")
  parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of matrix products")
  flags = parser.parse_args()
  try:
    adapter = convert(flags.source, flags.folder, flags.revision, flags.dtype)
  except (ValueError, OSError) as error:
    sys.exit(f"convert: {error}")
  print(f"{flags.folder}: {adapter.info['source']}, {adapter.width} wide, for features of {adapter.info['encoder']}")


if __name__ == "__main__":
  main()
