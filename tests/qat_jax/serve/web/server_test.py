"""The command as a process: what it refuses to start with, and how it stops."""

import concurrent.futures
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request

import jax
import numpy as np
import pytest

from qat_jax.serve.web import server
from tests.processes import free_port

PROGRAM = """
from qat_jax.serve import encoding
encoding.SIZES = (1,)  # compiles less
from qat_jax.cli import main
main()
"""


def start(settings, port, *more, **environment):
  flags = [f"--adapter={settings.adapter}", f"--gallery={settings.gallery}", f"--port={port}", *more]
  return subprocess.Popen(
    [sys.executable, "-c", PROGRAM, "serve", *flags],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    env={**os.environ, **environment},
  )


def ask(port, path, body=None):
  data = None if body is None else json.dumps(body).encode()
  with urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{port}{path}", data), timeout=30) as answer:
    return json.load(answer)


def until_ready(process, port):
  for _ in range(600):
    try:
      return ask(port, "/ready")
    except OSError:
      assert process.poll() is None, process.stderr.read()
      time.sleep(0.1)
  raise AssertionError("not ready within a minute")


def refused(settings, *more, **environment):
  process = start(settings, free_port(), *more, **environment)
  _, error = process.communicate(timeout=60)
  assert process.returncode == 1, error
  return error.strip().splitlines()[-1]


@pytest.fixture
def kept(tmp_path):
  return {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled")}


def test_it_starts_with_nothing_that_is_unsafe_missing_or_damaged(settings, shop, tmp_path, kept):
  assert refused(settings, "--host=0.0.0.0") == (
    "error: 0.0.0.0 is reached from other machines: set a key, QAT_JAX_API_KEY, or bind 127.0.0.1"
  )
  said = refused(settings, QAT_JAX_API_KEY="schlüssel")
  assert said.startswith("error: QAT_JAX_API_KEY has spaces or letters beyond ASCII") and "schl" not in said
  damaged = tmp_path / "damaged"
  shutil.copytree(shop / "gallery", damaged)
  path = next((damaged / "img_emb").glob("*.npy"))
  rows_ND = np.load(path)
  rows_ND[3] = rows_ND[4]
  np.save(path, rows_ND)
  said = refused(settings, f"--gallery={damaged}", "--encoder=none", **kept)
  assert said.startswith("error:") and "checksum" in said and path.name in said


def test_after_sigkill_it_starts_again_and_sigterm_answers_what_was_accepted(settings, kept):
  port = free_port()
  process = start(settings, port, "--encoder=none", **kept)
  until_ready(process, port)
  process.kill()
  process.communicate(timeout=20)

  process = start(settings, port, "--encoder=none", **kept)
  until_ready(process, port)
  with concurrent.futures.ThreadPoolExecutor(24) as pool:
    asked = [{"query": {"item": f"shop/{i}"}, "k": 3} for i in range(24)]
    answers = [pool.submit(ask, port, "/v1/search", one) for one in asked]
    concurrent.futures.wait(answers, return_when=concurrent.futures.FIRST_COMPLETED)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert time.monotonic() - began < 12 and process.returncode == 0
  answered = [one for one in answers if one.exception() is None]
  assert answered and all(len(one.result()["results"]["adapted"]) == 3 for one in answered)
  for one in answers:  # what was not accepted was told so, by a closed door
    reason = getattr(one.exception(), "reason", one.exception())
    assert reason is None or isinstance(reason, (ConnectionRefusedError, ConnectionResetError))


def test_a_user_without_a_home_keeps_nothing_compiled_and_goes_on(monkeypatch):
  def homeless(path):
    raise RuntimeError("Could not determine home directory.")

  monkeypatch.setattr("pathlib.Path.expanduser", homeless)
  kept = jax.config.jax_compilation_cache_dir
  jax.config.update("jax_compilation_cache_dir", None)
  try:
    server._keep_compiled()
    assert jax.config.jax_compilation_cache_dir is None
  finally:
    jax.config.update("jax_compilation_cache_dir", kept)
