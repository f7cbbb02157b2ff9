"""Marks and aspects on the page, in a real browser."""

import pytest

from tests.qat_jax.serve.web.browsers import MARKS, found, search, until

pytestmark = MARKS
DONE = "document.getElementById('status').textContent.includes(' ms')"


def press(page, selector):
  """Presses a button by keyboard and waits for the search that it begins."""
  page.evaluate("document.getElementById('status').textContent = ''")
  page.focus(selector)
  page.keyboard.press("Enter")
  until(page, DONE)


def test_marks_refine_hide_and_are_undone_and_the_link_keeps_them(page):
  first = search(page, "a red box")
  right, wrong = first[3], first[0]
  press(page, "#adapted li .say .right >> nth=3")
  assert right not in found(page) and "right=" in page.url
  press(page, f"#adapted li[data-id='{wrong}'] .wrong")
  after = found(page)
  assert wrong not in after and "1 left out" in page.inner_text("#marks")
  assert "hide" in page.get_attribute("#adapted li .wrong >> nth=0", "title")
  page.reload()
  page.wait_for_selector("#adapted li")
  assert found(page) == after and page.locator("#marked .chip").count() == 2
  press(page, "#marked .wrong")
  assert wrong in found(page) and "wrong=" not in page.url
  press(page, "#undo")
  assert found(page) == after
  press(page, "#clear")
  assert found(page) == first


def test_the_next_page_has_nothing_that_was_seen_and_going_back_shows_it_again(page):
  page.select_option("#mode", "adapted")
  first = search(page, "a red box")
  press(page, "#next")
  second = found(page)
  assert len(second) == 12 and not set(first) & set(second)
  press(page, "#next")
  assert len(set(first) | set(second) | set(found(page))) == 36
  press(page, "#next")
  assert "no item is left to find" in page.inner_text("#status")
  page.evaluate("document.getElementById('status').textContent = ''")
  page.go_back()
  page.go_back()
  until(page, DONE)
  assert found(page) == second


def test_why_names_the_mark_that_lifted_an_item(page):
  right = search(page, "a red box")[2]
  press(page, "#adapted li .say .right >> nth=2")
  page.click("#adapted li .why >> nth=0")
  page.wait_for_selector("#why-body table")
  text = page.inner_text("#why-body")
  assert f"“this one”: {right}" in text and "the words" in text


def test_chips_say_what_counts_and_the_link_keeps_it(page):
  search(page, "a red box")
  page.click("#words summary")
  press(page, "#alike >> text=colour")
  assert page.get_attribute("#alike button >> nth=0", "aria-pressed") == "true"
  assert page.evaluate("document.activeElement.textContent") == "colour"  # the keyboard stays where it was
  by_colour = found(page)
  press(page, "#ignore >> text=shape")
  assert "alike=colour" in page.url and "ignore=shape" in page.url and "(2)" in page.inner_text("#words summary")
  press(page, "#ignore >> text=shape")
  assert found(page) == by_colour
  page.reload()
  page.wait_for_selector("#adapted li")
  assert found(page) == by_colour
  page.click("#adapted li .why >> nth=0")
  page.wait_for_selector("#why-body table")
  assert "the aspect colour" in page.inner_text("#why-body")


def test_a_picture_with_words_asks_what_they_change(page):
  search(page, "a red box")
  assert not page.is_visible("#change")
  page.click("#adapted li .like >> nth=0")
  until(page, "location.hash.startsWith('#item=')")
  page.fill("#text", "a blue box")
  page.press("#text", "Enter")
  page.wait_for_selector("#change")
  page.evaluate("document.getElementById('status').textContent = ''")
  page.select_option("#change", "?")
  until(page, f"location.hash.includes('change=%3F') && {DONE}")
  assert "the text was taken to change" in page.inner_text("#status") and not page.is_visible("#weight-label")


def test_a_link_with_an_aspect_that_is_not_there_says_so(page, address):
  page.goto(f"{address}#q=a+box&ignore=size")
  page.reload()
  page.wait_for_selector("#adapted li")
  assert "names the aspects size" in page.inner_text("#error")


@pytest.mark.parametrize("width", [390, 1280])
def test_marks_and_chips_fit_the_screen(page, width):
  page.set_viewport_size({"width": width, "height": 800})
  search(page, "a red box")
  page.click("#words summary")
  press(page, "#adapted li .say .right >> nth=1")
  press(page, "#adapted li .say .wrong >> nth=1")
  assert page.evaluate("document.documentElement.scrollWidth") <= width
  heights = page.eval_on_selector_all(".say button", "all => all.map(one => one.offsetHeight)")
  assert min(heights) >= 40 and len(set(heights)) == 1
