"""What the processes of one training tell each other. The first one leads; a process that is alone asks nobody.

The first process does what has to be done once: it decides, fits closed forms, validates and writes. The others wait
for its answer in the key-value store of JAX's coordinator, not on their devices, where a wait of minutes would time
out. A process that fails ends all others (`joining`), so no wait is endless. Every question has a number and a name:
all processes ask the same questions in the same order, and one that asks another is told so.
"""

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

SEEN_WITHIN = 10.0  # seconds until a file that one host has written must be there for another
WAIT_MS = 60_000  # milliseconds that one request to the coordinator waits; it is repeated

Value = TypeVar("Value")
Tree = TypeVar("Tree")
_number = itertools.count()  # of the next question


def first() -> bool:
  """Says whether this process leads; a process that is alone does."""
  return jax.process_index() == 0


def sent(what: str, make: Callable[[], Value]) -> Value:
  """Returns the result of `make` (plain JSON), which only the first process calls; `what` is the question's name."""
  if jax.process_count() == 1:
    return make()
  key = _next_key()
  if first():
    value = make()
    _answer(key, what, value)
    return value
  return _answer_to(key, what)


def in_turn(what: str, make: Callable[[], Value]) -> Value:
  """Returns the result of `make`, which the first process calls before all others, so that they find its files."""
  value = make() if first() else None
  sent(what, lambda: None)
  return cast(Value, value) if first() else make()


def from_all(what: str, value: object) -> list[Any]:
  """Returns the values of all processes (plain JSON) by their number. No process goes on before all have come."""
  if jax.process_count() == 1:
    return [value]
  key = _next_key()
  _answer(f"{key}/{jax.process_index()}", what, value)
  return [_answer_to(f"{key}/{process}", what) for process in range(jax.process_count())]


def from_first(tree: Tree) -> Tree:
  """Returns the first process's pytree of arrays; the others give one of the same shapes."""
  return tree if jax.process_count() == 1 else multihost_utils.broadcast_one_to_all(tree)


def check_alike(what: str, values: Mapping[str, object], advice: str) -> None:
  """Raises ValueError that names the values which differ from those of the first process, and ends with the advice."""
  if jax.process_count() == 1:
    return
  values = fingerprint(**values)
  leading = sent(what, lambda: values)
  if differing := differences(leading, values, "{name} is {old} there, {new} here"):
    raise ValueError(f"{what} {me()} is not that of process 0: {'; '.join(differing)}. {advice}")
  from_all(f"{what} all are alike", None)


def check_start(settings: Mapping[str, object], workdir: Path) -> None:
  """Raises ValueError if processes have other settings, versions or numbers of devices, or share no folder."""
  versions = {"jax": jax.__version__, "qat-jax": qat_jax.__version__}
  values = {**settings, "versions": versions, "devices": jax.local_device_count()}
  check_alike("what was asked of", values, "Start all with the same command, save --process, and the same devices")
  check_folder(workdir)


def check_folder(folder: Path) -> None:
  """Raises ValueError if this process does not see a file that the first one writes to the folder, which is made."""
  if jax.process_count() == 1:
    return
  path, text = Path(folder) / ".seen-by-all", uuid.uuid4().hex

  def write() -> list[str]:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return [text, socket.gethostname()]

  expected, host = sent("a file in the working folder", write)
  until = time.monotonic() + SEEN_WITHIN
  while not _holds(path, expected):
    if time.monotonic() > until:
      raise ValueError(
        f"{me()} does not see in {folder} what process 0 on {host} has written there; give a --workdir on a file "
        "system that all hosts share"
      )
    time.sleep(0.05)
  from_all("all see the file", None)
  if first():
    path.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
  """Keeps other trainings out of a folder while the block runs, as `stages.lock` does."""
  with contextlib.ExitStack() as stack:
    sent("the lock of the working folder", lambda: stack.enter_context(lock(folder)))
    yield


def me() -> str:
  """Returns this process in words, such as `process 1 on node7`."""
  return f"process {jax.process_index()} on {socket.gethostname()}"


def client() -> Any:
  """Returns the client of JAX's coordinator; JAX has no public name for it, nor for its key-value store."""
  from jax._src import distributed

  return distributed.global_state.client


def get(key: str) -> str:
  """Returns the value of a key in the coordinator's store, and waits until it is there."""
  while True:
    try:
      return client().blocking_key_value_get(key, WAIT_MS)
    except jax.errors.JaxRuntimeError as error:
      if "DEADLINE_EXCEEDED" not in str(error):
        raise


def _next_key() -> str:
  return f"qat_jax/{next(_number)}"


def _answer(key: str, what: str, value: object) -> None:
  client().key_value_set(key, json.dumps([what, value]))


def _answer_to(key: str, what: str) -> Any:
  answered, value = json.loads(get(key))
  if answered != what:
    raise RuntimeError(
      f"{me()} asks for {what!r}, but the answer is to {answered!r}: a branch that not all processes take has asked a "
      "question; this is a fault of the program"
    )
  return value


def _holds(path: Path, text: str) -> bool:
  try:
    return path.read_text() == text
  except OSError:
    return False
