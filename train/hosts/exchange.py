"""What the processes of one training say to each other. The first leads; in a training of one process all is trivial.

The first process does what is done once: it decides, fits closed forms, validates and writes. The others wait for it
here, not on their devices, for as long as it takes; who fails ends all (`joining`), so nobody waits for ever.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import jax
from jax.experimental import multihost_utils

import qat_jax
from qat_jax.stages import differences, fingerprint, lock

SEEN_WITHIN = 10.0  # seconds, for a file that another host has written
WAIT_MS = 60_000  # of one question to the coordinator; it is asked again

Value = TypeVar("Value")
Tree = TypeVar("Tree")
_number = itertools.count()  # of what was exchanged: all processes exchange the same things in the same order


def first() -> bool:
  """Says whether this is the process that leads, as one that is alone does."""
  return jax.process_index() == 0


def sent(make: Callable[[], Value]) -> Value:
  """Returns what `make` gives on the first process, which alone runs it: what JSON can hold."""
  if jax.process_count() == 1:
    return make()
  key = _key()
  if first():
    value = make()
    client().key_value_set(key, json.dumps(value))
    return value
  return json.loads(_asked(key))


def in_turn(make: Callable[[], Value]) -> Value:
  """Returns what `make` gives here; the first process runs it before all others, which find what it left on disk."""
  value = make() if first() else None
  sent(lambda: None)
  return cast(Value, value) if first() else make()


def gathered(value: object) -> list[Any]:
  """Returns what every process gives, by its number: what JSON can hold. Nobody goes on before all are here."""
  if jax.process_count() == 1:
    return [value]
  key = _key()
  client().key_value_set(f"{key}/{jax.process_index()}", json.dumps(value))
  return [json.loads(_asked(f"{key}/{process}")) for process in range(jax.process_count())]


def copied(tree: Tree) -> Tree:
  """Returns a pytree of arrays as the first process has it; the others give one of the same shapes."""
  return tree if jax.process_count() == 1 else multihost_utils.broadcast_one_to_all(tree)


def check_alike(what: str, own: Mapping[str, object], advice: str) -> None:
  """Raises ValueError that names what this process has otherwise than the first one, and ends with the advice."""
  if jax.process_count() == 1:
    return
  own = fingerprint(**own)
  leading = sent(lambda: own)
  if differing := differences(leading, own, "{name} is {old} there, {new} here"):
    raise ValueError(f"{what} {me()} is not that of process 0: {'; '.join(differing)}. {advice}")
  gathered(None)


def check_start(settings: Mapping[str, object], workdir: Path) -> None:
  """Raises ValueError where processes have other settings, versions or numbers of devices, or share no folder."""
  versions = {"jax": jax.__version__, "qat-jax": qat_jax.__version__}
  own = {**settings, "versions": versions, "devices": jax.local_device_count()}
  check_alike("what was asked of", own, "Start all with the same command, save --process, and the same devices")
  check_folder(workdir)


def check_folder(folder: Path) -> None:
  """Raises ValueError where this process does not see what the first one writes to a folder, which is made."""
  if jax.process_count() == 1:
    return
  path, text = Path(folder) / ".seen-by-all", uuid.uuid4().hex

  def write() -> list[str]:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return [text, socket.gethostname()]

  wanted, host = sent(write)
  until = time.monotonic() + SEEN_WITHIN
  while not _holds(path, wanted):
    if time.monotonic() > until:
      raise ValueError(
        f"{me()} does not see in {folder} what process 0 on {host} has written there; give a --workdir on a file "
        "system that all hosts share"
      )
    time.sleep(0.05)
  gathered(None)
  if first():
    path.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
  """Keeps other trainings out of a folder while the block runs, as `stages.lock` does."""
  with contextlib.ExitStack() as stack:
    sent(lambda: stack.enter_context(lock(folder)))
    yield


def me() -> str:
  """Returns this process in words: `process 1 on node7`."""
  return f"process {jax.process_index()} on {socket.gethostname()}"


def client() -> Any:
  """Returns the client of JAX's coordinator, whose store of keys JAX uses itself but has no public name for."""
  from jax._src import distributed

  return distributed.global_state.client


def _key() -> str:
  return f"qat_jax/{next(_number)}"


def _asked(key: str) -> str:
  while True:
    try:
      return client().blocking_key_value_get(key, WAIT_MS)
    except jax.errors.JaxRuntimeError as error:
      if "DEADLINE_EXCEEDED" not in str(error):
        raise


def _holds(path: Path, text: str) -> bool:
  try:
    return path.read_text() == text
  except OSError:
    return False
