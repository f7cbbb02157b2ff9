"""Runs a job in a forked child that is killed, interrupted or refused room at a chosen moment, and says how it ended.

The parent has imported everything and started nothing, so a child is there in milliseconds. What counts as a moment is
a time, or the number of a file event: an open for writing, a rename, a removal, a folder made.
"""

import errno
import mmap
import os
import pathlib
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import NamedTuple

EVENTS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}
PATIENCE = 120  # seconds that any job may take
Job = Callable[[], object]


class Ended(NamedTuple):
  """How a child ended."""

  status: int  # negative: by this signal
  said: str  # stdout and stderr together
  seconds: float
  late: float  # seconds from the signal to the end; 0 where none was sent
  megabytes: float  # held at most
  events: int  # of files

  @property
  def lines(self) -> list[str]:
    """What was said, without progress bars and empty lines."""
    text = self.said.replace("\x1b[K", "\n").replace("\x1b[A", "\n").replace("\r", "\n")
    return [line.strip() for line in text.splitlines() if line.strip() and "it/s]" not in line and "?" not in line]

  @property
  def unexplained(self) -> str:
    """What a user should not have been shown; nothing where the end was a plain success or one line."""
    for sign in ("Traceback (most recent call last)", "Fatal Python error", "Exception ignored", "Segmentation"):
      if sign in self.said:
        return f"{sign}: …{self.said[-1500:]}"
    errors = [line for line in self.lines if line.startswith("error: ")]
    if self.status == 1 and len(errors) != 1:
      return f"status 1 with {len(errors)} lines that begin with `error: `: …{self.said[-800:]}"
    if self.status == -signal.SIGTERM and not self.lines:
      return ""  # it had not begun: the system's own answer to the signal, in silence
    if self.status not in (0, 1, 2, 128 + signal.SIGINT, 128 + signal.SIGTERM, -signal.SIGKILL):
      return f"status {self.status}: …{self.said[-800:]}"
    return ""

  @property
  def error(self) -> str:
    """The line of an error; nothing where there was none."""
    return next((line for line in self.lines if line.startswith("error: ")), "")


class Fault(NamedTuple):
  """What happens to a child, and when; the default is nothing."""

  event: int = 0  # at which file event, from 1
  after: float = 0.0  # or after how many seconds
  sent: signal.Signals = signal.SIGKILL
  refused: bool = False  # the event, and all that write after it, find no room
  file_limit: int = 0  # bytes that a file may have


NONE = Fault()


class Child:
  """A job that runs in a child, whose working folder is `folder`."""

  def __init__(self, job: Job, folder: pathlib.Path, fault: Fault = NONE) -> None:
    """Starts it."""
    self.counter, self.said, self.began = mmap.mmap(-1, 8), bytearray(), time.monotonic()
    reading, writing = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    self.process = os.fork()
    if not self.process:
      os.close(reading)
      _child(job, folder, fault, self.counter, writing)
    os.close(writing)
    self.listener = threading.Thread(target=self._listen, args=(reading,))
    self.listener.start()

  def _listen(self, reading: int) -> None:
    with open(reading, "rb", buffering=0) as pipe:
      while piece := pipe.read(1 << 16):
        self.said += piece

  def end(self, fault: Fault = NONE, patience: float = PATIENCE) -> Ended:
    """Waits for its end, and sends it a signal first where the fault says so."""
    timer = threading.Timer(patience, os.kill, (self.process, signal.SIGKILL))
    timer.start()
    sent_at = 0.0
    if fault.after:
      time.sleep(max(0.0, self.began + fault.after - time.monotonic()))
      sent_at = time.monotonic()
      os.kill(self.process, fault.sent)
    _, status, used = os.wait4(self.process, 0)
    ended = time.monotonic()
    timer.cancel()
    timer.join()
    self.listener.join()
    text = self.said.decode(errors="replace")
    if ended - self.began >= patience:
      text += f"\nTraceback (most recent call last): none, but it took {ended - self.began:.0f} s and was killed"
    late = ended - sent_at if sent_at else 0.0
    events = int.from_bytes(self.counter[:8], "little")
    code = os.waitstatus_to_exitcode(status)
    return Ended(code, text, ended - self.began, late, used.ru_maxrss / 1024, events)


def run(job: Job, folder: pathlib.Path, fault: Fault = NONE, patience: float = PATIENCE) -> Ended:
  """Runs a job in a child to its end."""
  return Child(job, folder, fault).end(fault, patience)


def _child(job: Job, folder: pathlib.Path, fault: Fault, counter: mmap.mmap, said: int) -> None:
  status = 70
  signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored
  try:
    os.dup2(said, 1)
    os.dup2(said, 2)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    os.chdir(folder)
    if fault.file_limit:
      signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
      resource.setrlimit(resource.RLIMIT_FSIZE, (fault.file_limit, fault.file_limit))
    sys.addaudithook(_watching(os.path.realpath(folder), fault, counter))
    status = outcome(job)
  finally:
    os._exit(status)


def outcome(job: Job) -> int:
  """Runs a job as a program of its own would run, and returns its status."""
  try:
    job()
    return 0
  except SystemExit as ended:
    if isinstance(ended.code, str):
      print(ended.code, file=sys.stderr)
      return 1
    return ended.code or 0
  except BaseException:
    traceback.print_exc()
    return 1
  finally:
    sys.stdout.flush()
    sys.stderr.flush()


def _watching(folder: str, fault: Fault, counter: mmap.mmap) -> Callable[[str, tuple], None]:
  """Returns an audit hook that counts what is changed below a folder, and brings the fault about."""
  count, here, busy = 0, os.getpid(), threading.Lock()

  def hook(event: str, about: tuple) -> None:
    nonlocal count
    if event == "open":
      if not isinstance(about[2], int) or not about[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        return
    elif event not in EVENTS:
      return
    path = about[0]
    if not isinstance(path, str | bytes | os.PathLike) or os.getpid() != here:
      return
    if not os.path.abspath(os.fsdecode(path)).startswith(folder):
      return
    with busy:
      count += 1
      counter[:8] = count.to_bytes(8, "little")
      at = count
    if fault.event and at >= fault.event:
      if fault.refused:
        if event in ("open", "os.mkdir"):
          raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fsdecode(path))
      elif at == fault.event:
        os.kill(here, fault.sent)
        time.sleep(60 if fault.sent == signal.SIGKILL else 0.0)

  return hook
