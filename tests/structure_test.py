import pytest

from tests import structure


def test_functions_and_names_are_counted_as_they_are_written():
  texts = {"a/x.py": "class Part: ...\ndef main():\n  pass\n", "b/y.py": "class Part: ...\ndef main(): ...\n"}
  assert structure.names_taken_twice(texts) == {"Part": ["a", "b"]}
  assert structure.functions(texts) == {"a/x.py:2 main": 2, "b/y.py:2 main": 1}


def test_each_limit_that_is_exceeded_is_named_and_ends_the_program_once_it_is_checked(monkeypatch, capsys):
  assert structure.exceeded({"product": 20_500}, {"f": 60}, {"x.py": 300}) == []
  assert structure.exceeded({"product": 20_501}, {"f": 61}, {"x.py": 301}) == [
    "product has 20,501 lines, 20,500 at most",
    "f has 61 lines, 60 at most",
    "x.py has 301 lines, 300 at most",
  ]
  monkeypatch.setattr(structure, "MOST_LINES", {"product": 1, "tests": 10**6})
  for checked in (False, True):
    monkeypatch.setattr(structure, "CHECKED", checked)
    with pytest.raises(SystemExit) as ended:
      structure.main()
    assert ended.value.code == checked
    assert "at most" in capsys.readouterr().out
