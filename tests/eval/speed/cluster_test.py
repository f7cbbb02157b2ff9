import argparse

from eval.speed import cluster


def test_the_tables_hold_ratios_to_one_process_and_what_more_images_come_to(monkeypatch):
  monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
  rows = [
    {"workers": 0, "extraction": 50.0, "ranking": 20.0},
    {"workers": 2, "extraction": 60.0, "ranking": 25.0, "start": 9.0, "bytes": 1800.4},
  ]
  lines = cluster.markdown_tables(
    rows, argparse.Namespace(pictures=1000, items=10**6, queries=8, width=256)
  ).splitlines()
  assert lines[2] == "| one process | 50.0 s (1.00) | 20.0 s (1.00) | – | – |"
  assert lines[3] == "| 2 | 60.0 s (1.20) | 25.0 s (1.25) | 9.0 s | 1800 |"
  assert lines[-2] == "| 1e+08 | 51.2 GB | 1e+07 | 500 |"
