from tests import structure


def test_functions_and_names_are_counted_as_they_are_written():
  texts = {"a/x.py": "class Part: ...\ndef main():\n  pass\n", "b/y.py": "class Part: ...\ndef main(): ...\n"}
  assert structure.names_taken_twice(texts) == {"Part": ["a", "b"]}
  assert structure.functions(texts) == {"a/x.py:2 main": 2, "b/y.py:2 main": 1}


def test_each_limit_that_is_exceeded_is_named(monkeypatch):
  assert structure.exceeded({"product": 10**6}, 60, 300) == []
  monkeypatch.setattr(structure, "CHECK_LINES", True)
  wrong = structure.exceeded({"product": 20_501, "tests": 16_000}, 61, 301)
  assert wrong == [
    "product has 20,501 lines, 20,500 at most",
    "a function has 61 lines, 60 at most",
    "a file has 301 lines, 300 at most",
  ]
