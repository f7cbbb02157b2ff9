import json
import pathlib
import signal
import subprocess
import sys

import pytest

from qat_jax.runs import read_metrics

ROOT = pathlib.Path(__file__).parents[2]


def test_lines_cut_short_by_a_kill_are_dropped_and_no_file_has_no_rows(tmp_path):
  path = tmp_path / "metrics.jsonl"
  assert read_metrics(path) == []
  path.write_text(json.dumps({"step": 1}) + "\n" + '{"step": 2, "lo\n' + json.dumps({"step": 3}) + "\n[1]\n" + '{"st')
  assert read_metrics(path) == [{"step": 1}, {"step": 3}]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
  "busy", ["time.sleep(600)", "for _ in range(10**9): hashlib.pbkdf2_hmac('sha256', b'a', b'b', 10**5)", "serving()"]
)
def test_a_signal_ends_a_program_with_one_line_and_a_signal_handled_later_does_not(number, busy):
  program = f"""
import hashlib, signal, sys, time
from qat_jax.runs import end_on_signals
def serving():
  handled = []
  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda *_: handled.append(1))
  print("ready", flush=True)
  while not handled:
    time.sleep(0.01)
  time.sleep(0.3)
  sys.exit(7)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored
end_on_signals()
if {busy != "serving()"}:
  print("ready", flush=True)
{busy}
"""
  words = [sys.executable, "-c", program]
  with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
  if busy == "serving()":
    assert (process.returncode, said) == (7, "")
  else:
    name = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
    assert said.split("\n") == ["", f"stopped by {name}; the same command goes on from what is finished", ""]
    assert process.returncode == 128 + number


def test_importing_the_package_has_no_side_effects():
  program = """
import gc, json, logging, os, signal, sys, threading, warnings
import jax, jax.export, numpy, pyarrow, pyarrow.parquet, flax.linen, tqdm, yaml, safetensors, concurrent.futures
def state():
  return {
    "signals": [str(signal.getsignal(number)) for number in sorted(signal.valid_signals())],
    "environment": dict(os.environ), "folder": os.getcwd(), "path": sys.path, "arguments": sys.argv,
    "threads": threading.active_count(), "warnings": len(warnings.filters), "hook": str(sys.excepthook),
    "logging": [str(logging.root.handlers), logging.root.level], "collector": gc.get_threshold(),
    "jax": {name: str(value) for name, value in jax.config.values.items()}, "mask": os.umask(0o22),
    "devices": jax._src.xla_bridge.backends_are_initialized(),
  }
before = json.dumps(state(), sort_keys=True)
import qat_jax, qat_jax.cli, qat_jax.runs
assert json.dumps(state(), sort_keys=True) == before, (before, state())
"""
  done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
  assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
