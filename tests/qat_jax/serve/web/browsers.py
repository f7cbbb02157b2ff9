"""A real browser, Chromium, and how tests wait in it."""

import os
import shutil

import pytest

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
MARKS = [
  pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: apt-get install chromium, or set CHROMIUM"),
  pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def until(page, expression):
  """Waits until an expression is true. Playwright's own wait would have the page eval, which its policy forbids."""
  for _ in range(300):
    if page.evaluate(expression):
      return
    page.wait_for_timeout(50)
  raise AssertionError(f"never true: {expression}")


def found(page, side="adapted"):
  """Returns the ids that a side shows, when the search is done."""
  until(page, "document.getElementById('status').textContent.includes(' ms')")
  return page.eval_on_selector_all(f"#{side} li", "items => items.map(item => item.dataset.id)")


def search(page, text):
  page.fill("#text", text)
  page.press("#text", "Enter")
  page.wait_for_selector("#adapted li")
  return found(page)
