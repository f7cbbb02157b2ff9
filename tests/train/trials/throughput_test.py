import itertools
import sys

from train.trials import throughput


def test_a_row_for_each_batch_says_how_fast_and_how_large(monkeypatch, capsys):
  words = ["throughput", "--form", "query_only", "--width", "16", "--batches", "4", "8", "--rounds", "1"]
  clock = itertools.count(0.0, 0.5)
  monkeypatch.setattr(sys, "argv", words)
  monkeypatch.setattr(throughput.time, "perf_counter", lambda: next(clock))  # half a second a step
  throughput.main()
  rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line[2:3].isdigit()]
  assert [row[:3] for row in rows] == [["4", "8", "500.0"], ["8", "16", "500.0"]]
  assert rows[0][4] == rows[1][4]  # parameters do not depend on the batch
