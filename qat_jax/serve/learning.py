"""An adapter that is learnt in the background: train.main as a process of its own, and then its adapter is served.

With captions or instances it learns from these, else from made views of each picture. The validation gate of the
program decides whether anything is better than the plain score; what it found is told, whatever it is.
"""

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import qat_jax

LEAST = 100  # pictures: with fewer there is nothing to validate on
TOLD = 5  # lines of the gate that are told


class Learning:
  """One run of the training program on a source of pictures."""

  def __init__(self, pictures: str, kind: str, encoder: str, workdir: Path) -> None:
    """Raises ImportError where only a wheel is installed: the program is a checkout's."""
    self.root = Path(qat_jax.__file__).parents[1]
    if not (self.root / "train/main.py").exists():
      raise ImportError(
        "--learn runs python -m train.main, which an installed wheel does not have; clone the repository"
      )
    self.pictures, self.kind, self.encoder, self.workdir = pictures, kind, encoder, workdir
    self.state, self.said = "waiting", list[str]()
    self._process: subprocess.Popen | None = None
    self._stopped = threading.Event()

  def command(self, labelled: bool) -> list[str]:
    """Returns the command line; `labelled` says whether there are captions or instances to learn from."""
    values = {
      "data.source": self.kind,
      "data.folder": os.path.abspath(self.pictures) if os.path.exists(self.pictures) else self.pictures,
      "encoder.name": self.encoder,
      **({} if labelled else {"data.views": "3"}),
    }
    words = [f"--config.{name}={value}" for name, value in values.items()]
    recipe = ["--config", str(self.root / "configs/clip_b16.py")]
    return [sys.executable, "-m", "train.main", *recipe, "--workdir", str(self.workdir), *words]

  def run(self, count: int, labelled: bool, done: Callable[[], Any]) -> None:
    """Trains, and calls `done` where that made an adapter; returns when it has ended, or was stopped."""
    if count < LEAST:
      self.state, self.said = "not begun", [f"{count} pictures are too few to learn from; wanted {LEAST}"]
      return
    self.state = "running"
    self.workdir.mkdir(parents=True, exist_ok=True)
    log = self.workdir / "learn.log"
    environment = {**os.environ, "PYTHONPATH": str(self.root)}
    last = ["nice", "-n", "19"] if shutil.which("nice") else []  # with what processor time nobody else wants
    with log.open("wb") as file:
      self._process = subprocess.Popen(
        [*last, *self.command(labelled)], stdout=file, stderr=subprocess.STDOUT, env=environment
      )
      status = self._process.wait()
    lines = log.read_text(errors="replace").splitlines()
    if self._stopped.is_set():
      self.state = "stopped"
    elif status:
      self.state, self.said = "failed", lines[-1:]
    else:
      self.said = [line for line in lines if " serves" in line][-TOLD:]
      try:
        done()
        self.state = "done"
      except (OSError, ValueError) as error:  # what was served goes on
        self.state, self.said = "failed", [" ".join(str(error).split())]

  def stop(self) -> None:
    """Ends the program; the next run goes on where it was."""
    self._stopped.set()
    if self._process is not None and self._process.poll() is None:
      self._process.terminate()
      self._process.wait()
