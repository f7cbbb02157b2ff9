import json

from eval.speed import duplicates


def test_planted_copies_are_found_and_timed(tmp_path, capsys):
  duplicates.main(["--items", "1000", "--width", "64", f"--json={tmp_path / 'out.json'}"])
  figures = json.loads((tmp_path / "out.json").read_text())
  assert figures["copies"] == figures["pairs"] == duplicates.COPIES and figures["seconds"] > 0
  assert "500 of 500 planted copies" in capsys.readouterr().out
