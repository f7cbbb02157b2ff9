import sys

from eval.speed import preparing


def test_it_says_what_parts_cost(monkeypatch, capsys):
  monkeypatch.setattr(
    sys, "argv", ["preparing", *["--items=64", "--width=8", "--pairs=20", "--queries=10", "--rounds=1"]]
  )
  preparing.main()
  told = capsys.readouterr().out.splitlines()
  assert told[0].startswith("preparing 64 × 8, 20 pairs, 10 queries: ")
  assert float(told[1].split("ratio ")[1]) > 0
