"""What qat-jax serve runs: one process that loads, answers, and drains when it is told to stop."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qat_jax.serve.limits import Limits, host_of, is_loopback
from qat_jax.serve.opening import Settings, open_service
from qat_jax.serve.places import Place
from qat_jax.serve.service import Service
from qat_jax.serve.starting import Running

if TYPE_CHECKING:
  from qat_jax.serve.web.state import State

KEY, WRITE_KEY = "QAT_JAX_API_KEY", "QAT_JAX_WRITE_KEY"
DRAIN = 10  # seconds that accepted requests have, after SIGTERM
COMPILED = "~/.cache/qat-jax/compiled"  # so that a restart compiles nothing; JAX_COMPILATION_CACHE_DIR is another place


def serve(
  settings: Settings | Place,
  limits: Limits,
  host: str = "127.0.0.1",
  port: int = 8000,
  names: tuple[str, ...] = (),
  origins: tuple[str, ...] = (),
) -> None:
  """Serves until SIGTERM or SIGINT, then answers what was accepted, for 10 seconds at most.

  The key is read from QAT_JAX_API_KEY. Raises ValueError where another address than this machine's own is to be bound
  without one, or what is to be served is missing or damaged; ImportError without the extra `serve`.
  """
  key, write_key = (os.environ.get(name) or None for name in (KEY, WRITE_KEY))
  for name, given in ((KEY, key), (WRITE_KEY, write_key)):
    if given and not all("!" <= letter <= "~" for letter in given):
      raise ValueError(f"{name} has spaces or letters beyond ASCII, which a header cannot say; choose another key")
  if key is None and not is_loopback(host):
    raise ValueError(f"{host} is reached from other machines: set a key, {KEY}, or bind 127.0.0.1")
  try:
    import uvicorn

    from qat_jax.serve.web.app import create
    from qat_jax.serve.web.state import State
  except ImportError as error:
    raise ImportError(f"the server wants the extra serve ({error}): pip install 'qat-jax[serve]'") from error
  log = logging.getLogger("qat_jax.serve")
  logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
  for name in ("jax", "uvicorn", "asyncio"):
    logging.getLogger(name).setLevel(logging.WARNING)

  _keep_compiled()
  state = State(limits)
  state.reopen = lambda: _opened(state, settings, log.info)
  hosts = None if key else frozenset({"localhost", "127.0.0.1", "::1", host.lower(), *map(host_of, names)})
  app = create(state, key, hosts, origins, write_key)
  config = uvicorn.Config(
    app,
    host=host,
    port=port,
    access_log=False,
    log_config=None,
    server_header=False,
    timeout_graceful_shutdown=DRAIN,
    timeout_keep_alive=15,
    limit_max_requests=None,
  )
  server = uvicorn.Server(config)
  failed: list[BaseException] = []

  def load() -> None:
    try:
      assert state.reopen is not None
      state.service = state.reopen()
      shown = f"[{host}]" if ":" in host else host
      print(f"serving on http://{shown}:{port}/", flush=True)
    except BaseException as error:  # told by the main thread
      failed.append(error)
      server.should_exit = True

  threading.Thread(target=load, name="load", daemon=True).start()
  for number in (signal.SIGTERM, signal.SIGINT):  # uvicorn handles them, and raises them again when it is done
    signal.signal(number, lambda *_: None)
  server.run()
  if not state.close(DRAIN) and not failed:
    print("stopped", flush=True)
    os._exit(0)  # a thread that compiles would abort the process; all that was acknowledged is on the disk
  if failed:
    raise failed[0]


def _opened(state: State, settings: Settings | Place, log: Callable[[str], Any]) -> Service:
  """Returns the service of what is to be served; of a collection that is open already with its adapter read anew."""
  if isinstance(settings, Settings):
    return open_service(settings, state.limits, log)
  if state.running is not None:
    return state.running.reload()
  running = Running(settings, state.limits, state.show, state.allow)
  running.start(log)
  state.running = running
  assert running.service is not None
  return running.service


@contextlib.contextmanager
def in_thread(app: Any, port: int) -> Iterator[None]:
  """Answers on 127.0.0.1, in a thread of this process, while the block runs."""
  import uvicorn

  server = uvicorn.Server(uvicorn.Config(app, port=port, log_config=None, access_log=False, ws="none"))
  thread = threading.Thread(target=server.run)
  thread.start()
  try:
    while not server.started:
      time.sleep(0.02)
    yield
  finally:
    server.should_exit = True
    thread.join()


def _keep_compiled() -> None:
  """Has JAX keep what it compiles, where it can be written."""
  import jax

  if getattr(jax.config, "jax_compilation_cache_dir", None) is not None:
    return
  try:
    folder = Path(COMPILED).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
  except (OSError, RuntimeError):  # RuntimeError: a user without a name and without HOME
    return
  jax.config.update("jax_compilation_cache_dir", str(folder))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
