import json

from qat_jax.runs import read_metrics


def test_lines_cut_short_by_a_kill_are_dropped_and_no_file_has_no_rows(tmp_path):
  path = tmp_path / "metrics.jsonl"
  assert read_metrics(path) == []
  path.write_text(json.dumps({"step": 1}) + "\n" + '{"step": 2, "lo\n' + json.dumps({"step": 3}) + "\n[1]\n" + '{"st')
  assert read_metrics(path) == [{"step": 1}, {"step": 3}]
