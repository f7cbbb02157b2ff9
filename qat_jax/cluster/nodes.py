"""Ray, which nothing else of ours imports: connecting to a cluster, and the actors that run on its nodes.

An actor gets, once, a function: paths, settings, parameters. Features it reads from the file system by itself.
"""

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import os
import pathlib
import pickle
import re
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

AUTO, CLIENT = "auto", "ray://"
REACHABLE_SECONDS = 8  # until a cluster that does not answer is not there

_connected: str | None = None


class Slot(NamedTuple):
  """Room for one actor: a node, and what of it the actor takes."""

  node: str  # Ray's name of it
  resources: dict[str, float]  # CPU, GPU, TPU
  accelerator: str | None  # what JAX must compute on, where the node has any: gpu, tpu


def connect(address: str) -> Any:
  """Returns Ray, connected to `auto` (the cluster that this machine is in, or RAY_ADDRESS) or to `ray://HOST:PORT`.

  A connection that the caller made is used. Raises ValueError for another address, ImportError where Ray is missing,
  ConnectionError where no cluster is, within ten seconds.
  """
  global _connected
  if address != AUTO and not (address.startswith(CLIENT) and address.rpartition(":")[2].isdigit()):
    raise ValueError(f"cluster is {address!r}; wanted 'local', {AUTO!r} or '{CLIENT}HOST:PORT'")
  os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
  try:
    import ray
  except ImportError as error:
    raise ImportError(f"the cluster {address} wants the package ray: pip install 'qat-jax[ray]'") from error
  if ray.is_initialized():
    if address not in (AUTO, _connected):
      raise ValueError(f"cluster is {address!r}, but this process is connected to another one; call ray.shutdown()")
    return ray
  where = os.environ.get("RAY_ADDRESS", "") if address == AUTO else address
  if where:
    _check_answers(where.removeprefix(CLIENT), address)
  try:
    ray.init(where or AUTO, configure_logging=False, log_to_driver=False)
  except (ConnectionError, RuntimeError) as error:
    raise ConnectionError(
      f"no cluster at {address} ({first_line(error)}); start one with ray start, see docs/scale.md"
    ) from error
  _connected = address
  return ray


def all_slots(ray: Any) -> list[Slot]:
  """Returns an actor's room on every node that is alive: one a GPU, or all TPUs of a host.

  Where there are none of either in the cluster: one a node, whose cores JAX uses by itself. Raises ConnectionError
  where no node has any.
  """
  nodes = [(node["NodeID"], node["Resources"]) for node in ray.nodes() if node["Alive"]]
  nodes.sort()
  slots = [Slot(name, {"CPU": 1, "GPU": 1}, "gpu") for name, has in nodes for _ in range(int(has.get("GPU", 0)))]
  slots += [Slot(name, {"CPU": 1, "TPU": has["TPU"]}, "tpu") for name, has in nodes if has.get("TPU")]
  slots = slots or [Slot(name, {"CPU": 1}, None) for name, has in nodes if has.get("CPU", 0) >= 1]
  if not slots:
    raise ConnectionError(f"the cluster has {len(nodes)} nodes, none with a core or an accelerator; add one")
  return slots


def starter(ray: Any, payload: Any) -> Callable[[Slot], Any]:
  """Returns what starts an actor in a slot, or elsewhere where its node is gone.

  `payload` is a reference to the pickle of a function, which the actor's `make` calls.
  """
  from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

  # by value, so that an actor can compare versions before anything of ours is imported
  ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
  remote, versions_here, threads = ray.remote(Actor), versions(), os.environ.get("OMP_NUM_THREADS")

  def start(slot: Slot) -> Any:
    options = ray_options(slot.resources) | {
      "max_restarts": -1,
      "max_task_retries": 0,  # the caller asks again: another actor, if one is free
      "scheduling_strategy": NodeAffinitySchedulingStrategy(slot.node, soft=True),
    }
    return remote.options(**options).remote([payload], versions_here, os.getcwd(), slot.accelerator, threads)

  return start


def ray_options(resources: dict[str, float]) -> dict[str, Any]:
  """Returns what an actor takes, as Ray wants to be told."""
  known = {"CPU": "num_cpus", "GPU": "num_gpus"}
  options: dict[str, Any] = {known[name]: amount for name, amount in resources.items() if name in known}
  others = {name: amount for name, amount in resources.items() if name not in known}
  return options | ({"resources": others} if others else {})


class Actor:
  """What runs on a node; it imports nothing of ours before it has compared versions."""

  def __init__(
    self, payload: list[Any], versions: dict[str, str], folder: str, accelerator: str | None, threads: str | None
  ) -> None:
    self.payload, self.versions, self.folder, self.accelerator = payload, versions, folder, accelerator
    self.function: Callable[..., Any] | None = None
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # somebody else may use the accelerator, too
    os.environ.pop("OMP_NUM_THREADS", None)  # Ray's choice is 1
    if threads:
      os.environ["OMP_NUM_THREADS"] = threads

  def ready(self) -> None:
    """Answers."""

  def make(self, *arguments: Any) -> Any:
    """Returns what the function does; an OSError says on which node it was."""
    import socket

    node = socket.gethostname()
    try:
      if self.function is None:
        self.function = self._begun(node)
      return self.function(*arguments)
    except OSError as error:
      text = f"{error} (on the node {node})"
      raise (type(error)(error.errno, text) if error.errno else type(error)(text)) from error

  def _begun(self, node: str) -> Callable[..., Any]:
    here = versions()
    different = {name: (v, here.get(name)) for name, v in self.versions.items() if v != here.get(name)}
    if different:
      which = "; ".join(f"{name} {its}, this process {expected}" for name, (expected, its) in different.items())
      raise ImportError(f"the node {node} has {which}: install the same on all nodes")
    with contextlib.suppress(OSError):  # absolute paths are found from anywhere
      os.chdir(self.folder)
    if self.accelerator:
      import jax

      if jax.default_backend() == "cpu":
        raise ValueError(
          f"the node {node} has a {self.accelerator.upper()}, but JAX computes on its processor "
          f"(JAX_PLATFORMS is {os.environ.get('JAX_PLATFORMS', '')!r}); unset that, and install qat-jax[gpu] or [tpu]"
        )
    import ray

    return pickle.loads(ray.get(self.payload[0]))


def versions() -> dict[str, str]:
  """Returns what has to be the same on all nodes, with a digest of our own code; "none" where something is missing."""
  by_package = {}
  spec = importlib.util.find_spec("qat_jax")
  places = spec.submodule_search_locations if spec else None
  if places:
    digest, folder = hashlib.blake2b(digest_size=4), pathlib.Path(next(iter(places)))
    for path in sorted(folder.rglob("*.py")):
      digest.update(f"{path.relative_to(folder)}".encode() + path.read_bytes())
    number = re.search(r'__version__ = "(.+)"', (folder / "__init__.py").read_text())
    by_package["qat-jax"] = f"{number[1] if number else 'of unknown version'} (code {digest.hexdigest()})"
  for name in ("jax", "jaxlib", "numpy"):
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      by_package[name] = importlib.metadata.version(name)
  return {name: by_package.get(name, "none") for name in ("qat-jax", "jax", "jaxlib", "numpy")}


def cause(error: Any) -> BaseException:
  """Returns what was raised on a node, with what Ray knows of the place behind it."""
  original = error.cause
  if not isinstance(original, BaseException):
    return RuntimeError(str(error))
  original.__cause__ = error
  return original


def first_line(error: BaseException) -> str:
  """Returns the first line of what an error says."""
  return str(error).strip().splitlines()[0]


def _check_answers(where: str, address: str) -> None:
  """Raises ConnectionError unless there is a server of gRPC: Ray itself would wait for a minute and more."""
  import grpc

  if os.environ.get("RAY_USE_TLS") == "1":
    return
  channel = grpc.insecure_channel(where)
  try:
    grpc.channel_ready_future(channel).result(timeout=REACHABLE_SECONDS)
  except grpc.FutureTimeoutError:
    raise ConnectionError(
      f"no cluster at {address}: nothing of Ray answers at {where} within {REACHABLE_SECONDS} s; look at the address, "
      "at firewalls, and whether the cluster runs"
    ) from None
  finally:
    channel.close()
