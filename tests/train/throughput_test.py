import sys

from train import throughput


def test_a_row_for_each_batch_says_how_fast_and_how_large(monkeypatch, capsys):
  words = ["throughput", "--form", "query_only", "--width", "16", "--batches", "4", "8", "--rounds", "1"]
  monkeypatch.setattr(sys, "argv", words)
  throughput.main()
  rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line[2:3].isdigit()]
  assert [row[0] for row in rows] == ["| 4", "| 8"]
  for row in rows:
    size, rate, step = int(row[0][2:]), *(float(cell.replace(",", "")) for cell in row[1:3])
    assert rate > 0
    assert abs(rate * step / 1e3 - size) <= 0.1 * size
  assert rows[0][4] == rows[1][4]  # parameters do not depend on the batch
