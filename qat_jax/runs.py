"""Shared by all programs: errors and signals that end in one line, provenance, and the lines of metrics.jsonl."""

import contextlib
import importlib.metadata
import json
import os
import pathlib
import platform
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import jax

from qat_jax.stages import FULL

STOPS: dict[int, str] = {signal.SIGINT: "stopped by Ctrl-C", signal.SIGTERM: "stopped by SIGTERM"}
AGAIN = "the same command goes on from what is finished"
ANEW = "nothing is kept of it, the same command begins anew"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "numpy", "scann")


@contextlib.contextmanager
def explained() -> Iterator[None]:
  """Ends the program with `error: …` and status 1 for bad input, a file error or a loss that is not finite."""
  try:
    yield
  except (ValueError, OSError, FloatingPointError) as error:
    print(f"error: {in_one_line(error)}", file=sys.stderr)
    raise SystemExit(1) from error


def in_one_line(error: BaseException) -> str:
  """Returns the message of an error on one line, with advice if the disk is full and the message has none."""
  text = " ".join(str(error.args[0] if isinstance(error, KeyError) and error.args else error).split())
  if isinstance(error, OSError) and error.errno in FULL and "room" not in text:
    return f"no room on the disk ({text}); free some space and run again"
  return text


def end_on_signals(advice: str = AGAIN, tell: Callable[[str], None] | None = None) -> None:
  """Makes Ctrl-C and SIGTERM end this process with one line and status 130 or 143; for the main thread of a program.

  Nothing is unwound: files on disk outlive a kill at any moment, and compilers and threads of libraries would delay an
  ordinary end, or crash in it. A call into compiled code is finished first. A signal that is ignored stays ignored, and
  a handler that is set later replaces this one.

  Args:
    advice: the end of the line.
    tell: is called with the beginning of the line; it must be quick.
  """

  def end(number: int, _: object) -> NoReturn:
    with contextlib.suppress(OSError, RuntimeError):  # RuntimeError: the signal came while stdout was written to
      sys.stdout.flush()
    begin = "\r\x1b[K" if os.isatty(2) else "\n"  # a progress bar may be in the line
    with contextlib.suppress(OSError):
      os.write(2, f"{begin}{STOPS[number]}; {advice}\n".encode())
    if tell:
      tell(STOPS[number])
    os._exit(128 + number)

  for number in STOPS:
    if signal.getsignal(number) != signal.SIG_IGN:
      signal.signal(number, end)


def provenance(config: dict[str, Any], seed: int) -> dict[str, Any]:
  """Returns config, seed, versions, commit and hardware as plain JSON; unknown versions are left out."""
  return {
    "config": config,
    "seed": seed,
    "versions": {"python": platform.python_version()} | {name: v for name in PACKAGES if (v := _version(name))},
    "commit": commit(),
    "hardware": hardware(),
  }


def hardware() -> str:
  """Returns the devices and the processor in words, such as `4 × cpu (2 cores, x86_64)`, and in how many processes."""
  devices, processes = jax.local_devices(), jax.process_count()
  devices_here = f"{len(devices)} × {devices[0].device_kind} ({os.cpu_count()} cores, {platform.machine()})"
  return devices_here if processes == 1 else f"{processes} processes of {devices_here}"


def commit() -> str:
  """Returns the commit of this checkout, with `-dirty` if files differ; `unknown` outside a checkout."""
  here = pathlib.Path(__file__).parent
  run = lambda *words: subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=False)
  try:
    head, changed = run("rev-parse", "HEAD"), run("status", "--porcelain", "--untracked-files=no")
  except OSError:
    return "unknown"
  if head.returncode:
    return "unknown"
  return head.stdout.strip() + ("-dirty" if changed.stdout.strip() else "")


def read_metrics(path: pathlib.Path | str) -> list[dict[str, Any]]:
  """Returns the rows of a metrics.jsonl without a line that a kill cut short; no rows if the file is missing."""
  path = pathlib.Path(path)
  rows = []
  for line in path.read_text().splitlines() if path.exists() else ():
    with contextlib.suppress(json.JSONDecodeError):
      rows.append(json.loads(line))
  return [row for row in rows if isinstance(row, dict) and "step" in row]


def _version(package: str) -> str | None:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return None
