import json
import pathlib
import signal
import subprocess
import sys

import pytest

from qat_jax.runs import read_metrics


def test_lines_cut_short_by_a_kill_are_dropped_and_no_file_has_no_rows(tmp_path):
  path = tmp_path / "metrics.jsonl"
  assert read_metrics(path) == []
  path.write_text(json.dumps({"step": 1}) + "\n" + '{"step": 2, "lo\n' + json.dumps({"step": 3}) + "\n[1]\n" + '{"st')
  assert read_metrics(path) == [{"step": 1}, {"step": 3}]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("busy", ["time.sleep(600)", "hashlib.pbkdf2_hmac('sha256', b'a', b'b', 10**9)", "serving()"])
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
  root = pathlib.Path(__file__).parents[2]
  words = [sys.executable, "-c", program]
  with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=root) as process:
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
  if busy == "serving()":
    assert (process.returncode, said) == (7, "")
  else:
    name = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
    assert said.split("\n") == ["", f"stopped by {name}; the same command goes on from what is finished", ""]
    assert process.returncode == 128 + number


@pytest.mark.parametrize("words", [["-m", "eval.score"], ["-c", "import qat_jax"]])
def test_ctrl_c_while_a_program_of_ours_is_imported_is_one_line_and_other_programs_are_left_alone(words, tmp_path):
  # stands for what takes long to import
  (tmp_path / "jax.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)")
  root = str(pathlib.Path(__file__).parents[2])
  heard = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
  line = [sys.executable, "-c", heard, sys.executable, *words]
  environment = {"PYTHONPATH": f"{tmp_path}:{root}", "PATH": ""}
  done = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path, env=environment)
  if words[0] == "-m":
    assert (done.returncode, done.stderr) == (130, "\nstopped by Ctrl-C before anything was begun\n")
  else:
    assert "KeyboardInterrupt" in done.stderr
