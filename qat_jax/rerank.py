"""The program python -m qat_jax.rerank; see `qat_jax.serve.batch.rerank_files` for what it does.

Not to be imported: as an attribute of the package, `qat_jax.rerank` is the function.
"""

if __name__ != "__main__":
  raise ImportError(
    "qat_jax.rerank is a program, python -m qat_jax.rerank; its function is qat_jax.serve.batch.rerank_files"
  )

import argparse
import sys

from qat_jax.serve.batch import rerank_files


def main() -> None:
  """Parses flags; `rerank_files` does the work."""
  parser = argparse.ArgumentParser(prog="python -m qat_jax.rerank", description="Rerank files of features.")
  parser.add_argument("--adapter", required=True, help="a run's folder, or an exported adapter's")
  parser.add_argument("--queries", required=True, help="frozen query features: a .npy file or a feature folder")
  parser.add_argument("--gallery", required=True, help="a feature folder")
  parser.add_argument("--shortlist", help="Parquet with query_id and item_id, or .npy positions; default: everything")
  parser.add_argument("--k", type=int, default=100, help="how many items a query to keep")
  parser.add_argument("--query_type", choices=["text", "image"], help="which head of the adapter")
  parser.add_argument("--block", type=int, default=64, help="queries a step, and what a killed run loses at most")
  parser.add_argument("--out", required=True, help="the Parquet file to write")
  try:
    path = rerank_files(**vars(parser.parse_args()))
  except (ValueError, OSError, KeyError) as error:
    sys.exit(f"error: {error}")
  print(f"rankings are in {path}")


main()
