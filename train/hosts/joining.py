"""Joining the processes of a training on many hosts, and leaving together.

JAX's coordinator, in process 0, introduces the processes to each other, and notices within a minute if one is gone. A
process that leaves because of an error or a signal first tells the others why, and they end with that line.
"""

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

HEARTBEAT = 60  # seconds without a sign of life after which JAX takes a process for dead and ends the others
GRACE = 1.0  # seconds for the others to hear why a process leaves
ENDED, DONE = "qat_jax/ended", "done"
AUTO = "auto"
ALL_AGAIN = f"start all processes again: {AGAIN}"
LOST = ("Gloo", "NCCL", "Connection closed", "UNAVAILABLE")  # words in errors of devices that lost another host's
FLAGS = "--coordinator, --processes and --process"
# For each launcher: a variable that shows that it started this process, and the one with the number of processes.
ENVIRONMENTS = {
  "Slurm": ("SLURM_STEP_NODELIST", "SLURM_NTASKS"),
  "Open MPI": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
}
TPU_HOSTS = ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES")

_leaving = threading.Lock()


@contextlib.contextmanager
def joined(coordinator: str | None, processes: int | None, process: int | None, wait: int) -> Iterator[None]:
  """Makes this process one of several while the block runs, if the arguments or the environment say so.

  An error in the block ends this process and all others, with one line if the error says what to do.

  Args:
    coordinator: HOST:PORT of process 0, or "auto".
    processes: the number of processes; 1 trains alone.
    process: the number of this process, from 0.
    wait: seconds in which all processes have to come.
  """
  with explained():
    how = way_to_join(coordinator, processes, process, os.environ)
    if how is not None:
      start_joining(how, wait)
  if how is None or jax.process_count() == 1:
    yield
    return
  watch = threading.Thread(target=_watch, name="others", daemon=True)
  watch.start()
  try:
    yield
  except BaseException as error:
    _fail(error)
  exchange.from_all("the end", None)
  if exchange.first():
    exchange.client().key_value_set(ENDED, DONE)
  watch.join()  # one that still waits when Python ends would crash it
  jax.distributed.shutdown()


def way_to_join(
  coordinator: str | None, processes: int | None, process: int | None, environment: Mapping[str, str]
) -> dict[str, Any] | None:
  """Returns the arguments of jax.distributed.initialize; None if this process trains alone.

  Raises ValueError if only some of the flags are given, or they contradict each other. `environment` says whether a
  launcher has started several processes.
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
  """Returns a program's arguments without the flags that say how processes join.

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
  """Returns the launcher of several processes by its variables: Slurm, Open MPI, Kubernetes, a TPU pod slice; or ""."""
  for name, (sign, count) in ENVIRONMENTS.items():
    if sign in environment and int(environment.get(count) or 1) > 1:
      return name
  if "KUBERNETES_SERVICE_HOST" in environment and "JOB_COMPLETION_INDEX" in environment:
    return "Kubernetes"
  return "a TPU pod slice" if any("," in environment.get(name, "") for name in TPU_HOSTS) else ""


def start_joining(how: Mapping[str, Any], wait: int) -> None:
  """Joins the others; ends the process with a line if one does not come in `wait` seconds, or if JAX cannot join."""
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
  for number in STOPS:  # JAX has put its own handler in the place of Python's
    if signal.getsignal(number) is not None:
      signal.signal(number, signal.getsignal(number))


def _check_free(port: int) -> None:
  """Raises OSError if another program listens on a port of this machine, which may crash JAX with a stack trace."""
  try:
    with socket.socket(socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET) as tried:
      tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
      tried.bind(("", port))
      tried.listen()
  except OSError as error:
    if error.errno == errno.EADDRINUSE:  # JAX names anything else that is wrong
      raise


def tell(what: str) -> None:
  """Ends all other processes with a line about this one, which has to end then; takes up to three seconds."""
  if not (jax.distributed.is_initialized() and exchange.client()) or not _leaving.acquire(blocking=False):
    return

  reason = f"{exchange.me()} {what}"

  def say() -> None:
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # another process was quicker, or process 0 is gone
      exchange.client().key_value_set(ENDED, reason)
    if exchange.first():
      time.sleep(GRACE)  # the coordinator ends with this process

  saying = threading.Thread(target=say, daemon=True)
  saying.start()
  saying.join(3 * GRACE)


def _fail(error: BaseException) -> NoReturn:
  """Ends this process and all others because of an error."""
  what, code = f"{type(error).__name__}: {in_one_line(error)[:300]}", 1
  if isinstance(error, SystemExit):  # `explained` has written its line
    what, code = in_one_line(error.__cause__ or error), error.code if isinstance(error.code, int) else 1
  elif isinstance(error, jax.errors.JaxRuntimeError) and any(word in what for word in LOST):
    time.sleep(GRACE)  # the process that ended may have told why
    print(f"\nerror: another process has ended ({what}); {ALL_AGAIN}", file=sys.stderr)
  else:
    traceback.print_exception(error)
  if _leaving.locked():  # another thread is ending this process
    threading.Event().wait()
  sys.stdout.flush()
  tell(f"has ended: {what}")
  os._exit(code)  # the ordinary end would wait for the others


def _watch() -> None:
  """Waits until the training has ended; ends this process if another one has failed."""
  try:
    reason = exchange.get(ENDED)
  except jax.errors.JaxRuntimeError as error:
    reason = f"process 0 cannot be reached any more ({in_one_line(error)[:200]}); {ALL_AGAIN}"
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
