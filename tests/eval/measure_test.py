from eval.measure import computed_by

SOURCE = 'def half(x):\n  """Returns half."""\n  return x / 2  # a comment\n'


def test_comments_docstrings_and_layout_do_not_count_and_any_code_does():
  plain = computed_by("def half(x):\n\n    return (x / 2)\n")
  assert computed_by(SOURCE) == plain
  for other in (SOURCE.replace("2", "2.0"), SOURCE.replace("(x)", "(x=1)"), SOURCE.replace("/", "//")):
    assert computed_by(other) != plain
  assert computed_by('NAME = "a"\n') != computed_by('NAME = "b"\n')
