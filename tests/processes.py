"""Real processes that train together on this machine, as on many hosts; see train/hosts and faults/hosts.py."""

import os
import pathlib
import socket
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]


class Processes:
  """Several processes of one command, each with CPU devices of its own; their output goes to files of a folder."""

  def __init__(self, folder: pathlib.Path, commands: list[list[str]], devices: list[int], cwds: list | None = None):
    folder.mkdir(parents=True, exist_ok=True)
    self.outputs = [folder / f"output{i}.txt" for i in range(len(commands))]
    self.all = []
    for i, (command, path) in enumerate(zip(commands, self.outputs, strict=True)):
      flags = f"--xla_force_host_platform_device_count={devices[i]}"
      environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}
      with path.open("w") as file:
        started = subprocess.Popen(
          [sys.executable, *command],
          stdout=file,
          stderr=subprocess.STDOUT,
          env=environment,
          cwd=cwds[i] if cwds else ROOT,
        )
      self.all.append(started)

  def wait(self, seconds: float = 240) -> list[int]:
    """Returns how each ended; who has not ended by then is killed, and TimeoutExpired raised."""
    try:
      return [one.wait(seconds) for one in self.all]
    finally:
      for one in self.all:
        one.kill()
        one.wait()

  def said(self) -> list[str]:
    """Returns what each has written, without what Gloo says when it connects."""
    return [
      "\n".join(line for line in path.read_text().splitlines() if "[Gloo]" not in line and "peer ranks" not in line)
      for path in self.outputs
    ]


def free_port() -> int:
  """Returns a port that nobody listens at."""
  with socket.socket() as listening:
    listening.bind(("127.0.0.1", 0))
    return listening.getsockname()[1]


def joining(processes: int, port: int | None = None) -> list[list[str]]:
  """Returns the flags with which each of so many processes joins."""
  port = port or free_port()
  return [[f"--coordinator=127.0.0.1:{port}", f"--processes={processes}", f"--process={i}"] for i in range(processes)]
