import pytest

from tests import structure


def test_functions_and_names_are_counted_as_they_are_written():
  texts = {
    "a/x.py": "class Part: ...\ndef main():\n  pass\nclass A:\n  def main(self): ...\n",
    "b/y.py": "class Part: ...\ndef main(): ...\n",
  }
  assert structure.names_taken_twice(texts) == {"Part": ["a", "b"]}
  assert structure.functions(texts) == {"a/x.py main": 2, "b/y.py main": 1}


def test_each_limit_that_is_exceeded_is_named_and_ends_the_program(monkeypatch, capsys):
  monkeypatch.setattr(structure, "MOST_LINES", {"product": 10, "tests": 10**6})
  monkeypatch.setattr(structure, "LONGER", {"x.py g": 70, "x.py h": 70, "y.py": 310})
  assert structure.exceeded({"product": 10}, {"x.py f": 60, "x.py g": 70}, {"x.py": 300, "y.py": 310}) == []
  assert structure.exceeded({"product": 11}, {"x.py f": 61, "x.py g": 71, "x.py h": 60}, {"x.py": 301}) == [
    "product has 11 lines, 10 at most",
    "x.py f has 61 lines, 60 at most",
    "x.py g has 71 lines, 70 at most",
    "LONGER has x.py h, which has 60 lines, 59 at most",
    "x.py has 301 lines, 300 at most",
  ]
  with pytest.raises(SystemExit) as ended:
    structure.main()
  assert ended.value.code
  assert "lines, 10 at most" in capsys.readouterr().out
