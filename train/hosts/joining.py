"""Joining the processes of a training on many hosts, and leaving together.

JAX's own coordinator, in process 0, introduces the processes to each other, and notices within a minute who is gone.
Who leaves because of an error or a signal says why first, and all others end with that line.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

import jax

from qat_jax.runs import AGAIN, STOPS, explained, in_one_line
from train.hosts import exchange

HEARTBEAT = 60  # seconds without a sign of life, then a process counts as dead and JAX ends the others
GRACE = 1.0  # seconds in which the others hear why a process leaves
ENDED, DONE = "qat_jax/ended", "done"
AUTO = "auto"
ALL_AGAIN = f"start all processes again: {AGAIN}"
LOST = ("Gloo", "NCCL", "Connection closed", "UNAVAILABLE")  # in errors of devices that wait for those of others
FLAGS = "--coordinator, --processes and --process"
# What says how many processes there are, beside what tells that they were started together.
ENVIRONMENTS = {
  "Slurm": ("SLURM_STEP_NODELIST", "SLURM_NTASKS"),
  "Open MPI": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
}
TPU_HOSTS = ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES")

_leaving = threading.Lock()


@contextlib.contextmanager
def joined(coordinator: str | None, processes: int | None, process: int | None, wait: int) -> Iterator[None]:
  """Makes this process one of several while the block runs, where the arguments or the environment say so.

  Any end of the block but the ordinary one is the end of the process, and of all others: in one line where it is an
  error that names what to do. `wait` is how many seconds all have to come.
  """
  with explained():
    how = asked(coordinator, processes, process, os.environ)
    if how is not None:
      start(how, wait)
  if how is None or jax.process_count() == 1:
    yield
    return
  watch = threading.Thread(target=_watch, name="others", daemon=True)
  watch.start()
  try:
    yield
  except BaseException as error:
    _fail(error)
  exchange.gathered(None)
  if exchange.first():
    exchange.client().key_value_set(ENDED, DONE)
  watch.join()  # one that still waits when Python ends would crash it
  jax.distributed.shutdown()


def asked(
  coordinator: str | None, processes: int | None, process: int | None, environment: Mapping[str, str]
) -> dict[str, Any] | None:
  """Returns how to join, as jax.distributed.initialize takes it; None: nobody says that there are others.

  Raises ValueError where only some of it is given, or makes no sense.
  """
  given = {"--coordinator": coordinator, "--processes": processes, "--process": process}
  missing = [name for name, value in given.items() if value is None]
  if processes == 1 and (process or 0) == 0:
    return None
  if coordinator == AUTO:
    return {}
  if len(missing) == 3:
    return {} if told_by(environment) else None
  if missing:
    raise ValueError(
      f"{FLAGS} go together, and {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not given; give all "
      f"three, --coordinator={AUTO}, or none where Slurm, MPI or Kubernetes says it"
    )
  assert coordinator is not None and processes is not None and process is not None
  host, _, port = coordinator.rpartition(":")
  if not host or not port.isdecimal():
    raise ValueError(f"--coordinator is {coordinator!r}; wanted HOST:PORT, where process 0 runs and a port free there")
  if not 0 <= process < processes:
    raise ValueError(f"--process is {process} of --processes={processes}; the numbers are 0 to {processes - 1}")
  return {"coordinator_address": coordinator, "num_processes": processes, "process_id": process}


def words_alone(words: Sequence[str]) -> list[str]:
  """Returns a program's arguments without those that say how processes join.

  >>> words_alone(["--config=a.py", "--coordinator", "node0:4000", "--processes=2", "--process=0"])
  ['--config=a.py']
  """
  names, kept, value = ("coordinator", "processes", "process", "wait"), [], False
  for word in words:
    name, given, _ = word.lstrip("-").partition("=")
    if word.startswith("-") and name in names:
      value = not given
    elif value:
      value = False
    else:
      kept.append(word)
  return kept


def told_by(environment: Mapping[str, str]) -> str:
  """Returns who says that this process is one of several: Slurm, Open MPI, Kubernetes, a TPU pod slice; "": nobody."""
  for name, (sign, count) in ENVIRONMENTS.items():
    if sign in environment and int(environment.get(count) or 1) > 1:
      return name
  if "KUBERNETES_SERVICE_HOST" in environment and "JOB_COMPLETION_INDEX" in environment:
    return "Kubernetes"
  return "a TPU pod slice" if any("," in environment.get(name, "") for name in TPU_HOSTS) else ""


def start(how: Mapping[str, Any], wait: int) -> None:
  """Joins the others; ends the process with a line where one does not come in `wait` seconds, or JAX cannot join."""
  timer = threading.Timer(wait, _nobody_came, [how, wait])  # JAX's own time-out is a crash with a stack trace
  timer.daemon = True
  timer.start()
  try:
    if how and how.get("process_id") == 0:
      _check_free(int(how["coordinator_address"].rpartition(":")[2]))
    jax.distributed.initialize(**how, initialization_timeout=wait + 60, heartbeat_timeout_seconds=HEARTBEAT)
    jax.devices()
  except (ValueError, RuntimeError, OSError) as error:
    place = f"at {how['coordinator_address']}" if how else "as the environment says"
    _end(
      f"cannot join the other processes {place}: {in_one_line(error)[:300]}; give {FLAGS}, with a port that is free on "
      "process 0's host, or --processes=1 to train alone"
    )
  timer.cancel()
  for number in STOPS:  # JAX has put a handler of its own beneath Python's
    if signal.getsignal(number) is not None:
      signal.signal(number, signal.getsignal(number))


def _check_free(port: int) -> None:
  """Raises OSError where somebody listens on a port of this machine: JAX may crash there, with a stack trace."""
  try:
    with socket.socket(socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET) as tried:
      tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
      tried.bind(("", port))
      tried.listen()
  except OSError as error:
    if error.errno == errno.EADDRINUSE:  # whatever else is wrong, JAX says
      raise


def tell(what: str) -> None:
  """Has all other processes end, and say what happened to this one, which then has to end; may take a second or two."""
  if not (jax.distributed.is_initialized() and exchange.client()) or not _leaving.acquire(blocking=False):
    return

  reason = f"{exchange.me()} {what}"

  def say() -> None:
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # somebody was quicker, or process 0 is gone
      exchange.client().key_value_set(ENDED, reason)
    if exchange.first():
      time.sleep(GRACE)  # the coordinator ends with this process

  saying = threading.Thread(target=say, daemon=True)
  saying.start()
  saying.join(3 * GRACE)


def _fail(error: BaseException) -> NoReturn:
  """Ends this process and all others because of an error."""
  what, code = f"{type(error).__name__}: {in_one_line(error)[:300]}", 1
  if isinstance(error, SystemExit):  # whose line `explained` has written
    what, code = in_one_line(error.__cause__ or error), error.code if isinstance(error.code, int) else 1
  elif isinstance(error, jax.errors.JaxRuntimeError) and any(word in what for word in LOST):
    time.sleep(GRACE)  # who has ended may have said why
    print(f"\nerror: another process has ended ({what}); {ALL_AGAIN}", file=sys.stderr)
  else:
    traceback.print_exception(error)
  if _leaving.locked():  # another thread is ending this process
    threading.Event().wait()
  sys.stdout.flush()
  tell(f"has ended: {what}")
  os._exit(code)  # the ordinary end would wait for the others


def _watch() -> None:
  """Waits for word that the training has ended; ends this process where another one has failed."""
  while True:
    try:
      reason = exchange.client().blocking_key_value_get(ENDED, exchange.WAIT_MS)
      break
    except jax.errors.JaxRuntimeError as error:
      if "DEADLINE_EXCEEDED" not in str(error):
        reason = f"process 0 cannot be reached any more ({in_one_line(error)[:200]}); {ALL_AGAIN}"
        break
  if reason != DONE and _leaving.acquire(blocking=False):
    _end(reason, GRACE if exchange.first() else 0)  # the others hear it from the coordinator in process 0


def _nobody_came(how: Mapping[str, Any], wait: int) -> NoReturn:
  address = how.get("coordinator_address", "")
  if address and not _answers(address):
    text = f"nobody answers at {address}, where process 0 should be, for {wait} s; start it there, or open the port"
  else:
    count = how.get("num_processes", "the")
    text = f"not all of {count} processes have come in {wait} s; start each with a number of its own, from 0 on"
  _end(f"{text}. --wait=SECONDS waits longer")


def _end(text: str, after: float = 0) -> NoReturn:
  print(f"\nerror: {text}", file=sys.stderr, flush=True)
  time.sleep(after)
  os._exit(1)


def _answers(address: str) -> bool:
  host, _, port = address.rpartition(":")
  try:
    socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
  except OSError:
    return False
  return True
