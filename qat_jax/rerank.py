"""The older name of the command's `rank`, a program; see `qat_jax.cli`.

Not to be imported: as an attribute of the package, `qat_jax.rerank` is the function.
"""

if __name__ != "__main__":
  raise ImportError(
    "qat_jax.rerank is a program, python -m qat_jax.rerank; its function is qat_jax.serve.batch.rerank_files"
  )

import sys

from qat_jax.cli import main

main(["rank", *sys.argv[1:]])
