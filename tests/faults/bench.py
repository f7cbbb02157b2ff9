"""Where campaigns work: the material, what every stage makes of it undisturbed, and a fresh folder for each case."""

import functools
import pathlib
import shutil
import tempfile
from typing import NamedTuple

import jax

from tests.faults.jobs import STAGES, Stage, made, material
from tests.faults.victims import NONE, Ended, Fault, Job, run


class Outcome(NamedTuple):
  """What a case came to: its row of the table, what happened in a few words, and what is wrong, if anything is."""

  row: str
  happened: str
  wrong: str = ""


class Reference(NamedTuple):
  """A stage that nobody disturbed: what it made, how many file events that took, how long, and the bytes it wrote."""

  made: dict[str, str]
  events: int
  seconds: float
  size: int
  largest: int


class Bench:
  """Material, references and scratch folders, all below one folder."""

  def __init__(self, folder: pathlib.Path) -> None:
    """Makes the material anew; programs that are compiled for it are kept beside it, for all cases."""
    self.material, self.scratch = folder / "material", folder / "scratch"
    for left in (self.material, self.scratch):
      shutil.rmtree(left, ignore_errors=True)
    self.scratch.mkdir(parents=True)
    jax.config.update("jax_compilation_cache_dir", str(folder / "compiled"))
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    self._compiled(kept=True)
    expect_success(run(lambda: material(self.material), folder))

  def _compiled(self, kept: bool) -> None:
    """Has children read compiled programs, and keep new ones or not: a killed one would leave half of one."""
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0 if kept else 1e9)

  def folder(self, stage: Stage, where: pathlib.Path | None = None) -> pathlib.Path:
    """Returns a folder with what a stage reads: a fresh one, or the one given."""
    where = where or pathlib.Path(tempfile.mkdtemp(dir=self.scratch))
    if "run" in stage.reads and not (self.material / "run").exists():
      done = self.reference("training")  # of which the working folder stays
      assert done.made and (self.material / "run").exists()
    for name in stage.reads:
      shutil.copytree(self.material / name, where / name)
    return where

  @functools.cache  # noqa: B019 (one bench a process)
  def reference(self, name: str) -> Reference:
    """Returns what a stage makes undisturbed; run twice, since the second finds its programs compiled."""
    stage, found = STAGES[name], []
    for kept in (True, False):
      self._compiled(kept)
      folder = self.folder(stage)
      ended = expect_success(run(stage.job, folder))
      sizes = [p.stat().st_size for place in stage.writes for p in files(folder / place)]
      found.append(Reference(made(folder, stage), ended.events, ended.seconds, sum(sizes), max(sizes)))
      if name == "training" and not (self.material / "run").exists():
        shutil.copytree(folder / "run", self.material / "run")
      shutil.rmtree(folder)
    if wrong := compared(found[1].made, found[0].made):
      raise AssertionError(f"{name} is not the same twice, undisturbed: {wrong}")
    return found[1]

  def run(self, job: Job, folder: pathlib.Path, fault: Fault = NONE) -> Ended:
    """Runs a job with a fault."""
    self._compiled(kept=False)
    return run(job, folder, fault)


def files(path: pathlib.Path) -> list[pathlib.Path]:
  """Returns the files at or below a path."""
  return [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())


def expect_success(ended: Ended) -> Ended:
  """Raises AssertionError where a job that nobody disturbed failed."""
  if ended.status:
    raise AssertionError(f"status {ended.status}, undisturbed: {ended.said[-2000:]}")
  return ended


def compared(got: dict[str, str], wanted: dict[str, str]) -> str:
  """Returns how what was made differs from what should be there, in words; nothing where it does not."""
  words = [f"{name} is missing" for name in sorted(wanted.keys() - got.keys())]
  words += [f"{name} should not be there" for name in sorted(got.keys() - wanted.keys())]
  words += [f"{name} differs" for name in sorted(wanted.keys() & got.keys()) if got[name] != wanted[name]]
  return "; ".join(words[:4])


def half_files(got: dict[str, str], wanted: dict[str, str]) -> str:
  """Returns which files have their final name and not their final content, after a run that was cut short."""
  wrong = [name for name in got if not name.endswith(".tmp") and name in wanted and got[name] != wanted[name]]
  return "; ".join(f"{name} has its name and is not whole" for name in wrong[:4])
