"""Builds the wheel, installs it alone with its core dependencies in a fresh environment, and ranks with it.

make wheel-test. Prints what the lightest install that ranks weighs, and how long its import takes.
"""

import os
import pathlib
import subprocess
import sys
import tempfile
import venv
import zipfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
IMPORT_SECONDS = 2.0  # of processor time, which another program beside it does not lengthen much

RANKS = """
import importlib.metadata, sys, time
start = time.process_time()
import qat_jax
print(f"import {time.process_time() - start:.2f}")
import numpy as np, jax
from qat_jax.models import forms
assert qat_jax.__version__ == importlib.metadata.version("qat-jax")
assert "site-packages" in qat_jax.__file__, qat_jax.__file__
settings = {"hidden": 16, "rank": 2, "token_hidden": 8}
head = qat_jax.Head("adaptive", settings, forms.initialise(forms.FORMS["adaptive"](16, **settings), jax.random.key(0)))
qat_jax.Adapter(16, {"text": head}).save("adapter")
gallery_ND = np.random.default_rng(0).normal(size=(1000, 16)).astype(np.float32)
adapter = qat_jax.load("adapter")
ranking = qat_jax.rank(adapter(gallery_ND[:3] + 0.01, "text"), adapter.prepare(gallery_ND, "text"), k=5)
assert np.asarray(ranking.ids)[:, 0].tolist() == [0, 1, 2], ranking.ids
qat_jax.write_features("gallery", {"img": gallery_ND}, {"id": [f"item{n}" for n in range(1000)]})
np.save("queries.npy", gallery_ND[:3] + 0.01)
"""


def run(*command: object, **options: object) -> str:
  """Returns what a command prints; its failure ends the program."""
  outside = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}  # so that no checkout is seen
  words = [str(part) for part in command]
  return subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True, env=outside, **options).stdout


def main() -> None:
  """Ends with an AssertionError, or the failed command, where the wheel is not what it should be."""
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT, cwd=folder)
    wheel = next(folder.glob("*.whl"))
    tops = {path.split("/")[0] for path in zipfile.ZipFile(wheel).namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"qat_jax"}, tops
    assert "qat_jax/py.typed" in zipfile.ZipFile(wheel).namelist()

    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv/bin/python"
    constraints = ROOT / "constraints.txt"
    run(python, "-m", "pip", "install", "--quiet", "--constraint", constraints, wheel, cwd=folder)
    run(python, "-c", "import qat_jax", cwd=folder)  # writes the byte code, as the first import after any install does
    seconds = float(run(python, "-c", RANKS, cwd=folder).split()[1])
    assert seconds < IMPORT_SECONDS, f"import qat_jax takes {seconds:.2f} s; wanted under {IMPORT_SECONDS} s"
    files = [
      "--adapter=adapter",
      "--queries=queries.npy",
      "--gallery=gallery",
      "--query-type=text",
      "--out=best.parquet",
    ]
    run(folder / "venv/bin/qat-jax", "rank", *files, "--k=5", cwd=folder)
    assert (folder / "best.parquet").exists()
    version = run(folder / "venv/bin/qat-jax", "--version", cwd=folder).split()
    assert version == ["qat-jax", wheel.name.split("-")[1]], version

    site = next((folder / "venv/lib").glob("*/site-packages"))
    megabytes = sum(path.stat().st_size for path in site.rglob("*") if path.is_file()) / 1e6
    packages = len(run(python, "-m", "pip", "freeze").splitlines())
    size = wheel.stat().st_size / 1e6
    print(
      f"wheel {size:.1f} MB; with core dependencies {packages} packages, {megabytes:.0f} MB; import {seconds:.2f} s"
    )


if __name__ == "__main__":
  main()
