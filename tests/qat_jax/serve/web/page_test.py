"""The page in a real browser: Chromium, where there is one."""

import base64
import json
import pathlib
import urllib.parse

import pytest

from qat_jax.serve.limits import Limits
from qat_jax.serve.web.app import create
from qat_jax.serve.web.server import in_thread
from qat_jax.serve.web.state import State
from tests.qat_jax.serve.web.browsers import CHROMIUM, MARKS, found, search, until

pytestmark = MARKS


def test_words_find_items_on_both_sides_and_the_link_opens_the_same_search(page, browser):
  assert not page.is_visible("#plain")
  first = search(page, "a red box")
  assert len(first) == 12 and len(found(page, "plain")) == 12
  assert "q=a+red+box" in page.url and not page.is_visible("#examples")
  page.check("#scores")
  page.wait_for_selector("#adapted .score")
  again = page.context.new_page()
  again.goto(page.url)
  again.wait_for_selector("#adapted .score")
  assert found(again) == first
  loaded = "[...document.querySelectorAll('#plain img')].slice(0, 4).every(i => i.complete && i.naturalWidth)"
  sources = again.eval_on_selector_all("#plain img", "images => images.map(image => image.getAttribute('src'))")
  assert {source.split("%2F")[0] for source in sources} == {"v1/items?id=shop"}  # which serves for any id
  until(again, loaded)
  search(page, "a blue box")
  page.go_back()
  until(page, "document.getElementById('text').value === 'a red box'")


def test_duplicates_are_hidden_and_the_link_says_so(page):
  assert len(search(page, "a red box")) == 12
  page.check("#once")
  until(page, "document.querySelectorAll('#plain .alike').length > 0")
  kept = found(page, "plain")
  assert len(kept) < 12 and "once=1" in page.url
  counts = page.eval_on_selector_all("#plain .alike", "all => all.map(one => parseInt(one.textContent))")
  assert counts and min(counts) > 1
  heights = page.eval_on_selector_all("li.card .line", "lines => lines.map(line => Math.round(line.offsetHeight))")
  assert len(set(heights)) == 1  # the number lies on the picture: rows of both sides stay beside each other
  again = page.context.new_page()
  again.goto(page.url)
  again.wait_for_selector("#plain li")
  assert found(again, "plain") == kept and again.is_checked("#once")


def test_a_click_searches_for_more_like_it_and_words_are_added(page):
  first = search(page, "a red box")[0]
  page.click("#adapted li .like >> nth=0")
  until(page, "location.hash.startsWith('#item=')")
  until(page, "document.querySelectorAll('#adapted li').length === 12")
  alone = found(page)
  assert first not in alone and page.is_visible("#subject") and not page.is_visible("#weight-label")
  page.fill("#text", "in blue")
  page.press("#text", "Enter")
  until(page, "location.hash.includes('weight=0.5')")
  page.wait_for_selector("#weight-label")
  page.click("#remove")
  page.wait_for_selector("#subject", state="hidden")
  assert page.input_value("#text") == "in blue"


def test_a_picture_is_searched_with(page, shop):
  page.set_input_files("#file", str(shop / "pictures/0.png"))
  page.wait_for_selector("#plain li")
  found(page)
  assert page.get_attribute("#plain li >> nth=0", "data-id") == "shop/0"
  page.click("#plain li .why >> nth=0")
  assert "rank among all" in page.inner_text("#why-body table")


GIVEN = """([kind, data]) => {
  const transfer = new DataTransfer(), bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
  transfer.items.add(new File([bytes], "mine.png", { type: "image/png" }));
  const about = { bubbles: true, cancelable: true, dataTransfer: transfer, clipboardData: transfer };
  document.body.dispatchEvent(kind === "paste" ? new ClipboardEvent(kind, about) : new DragEvent(kind, about));
}"""


@pytest.mark.parametrize("kind", ["drop", "paste"])
def test_a_picture_is_dropped_or_pasted(page, shop, kind):
  data = base64.b64encode((shop / "pictures/0.png").read_bytes()).decode()
  if kind == "drop":
    page.evaluate(GIVEN, ["dragenter", data])
    page.wait_for_selector("#drop")
  page.evaluate(GIVEN, [kind, data])
  page.wait_for_selector("#plain li")
  assert found(page, "plain")[0] == "shop/0" and "mine.png" in page.inner_text("#subject")
  assert not page.is_visible("#drop")


def test_filters_narrow_and_are_part_of_the_link(page):
  search(page, "a box")
  page.click("#filters summary")
  page.select_option("[data-column=colour]", "green")
  until(page, "location.hash.includes('filters')")
  page.fill("[data-column=price][data-end=most]", "3")
  page.press("[data-column=price][data-end=most]", "Tab")
  until(page, "document.querySelectorAll('#plain li').length === 2")
  assert sorted(found(page, "plain")) == ["shop/1", "shop/4"]
  page.reload()
  until(page, "document.querySelectorAll('#plain li').length === 2")
  assert "(2)" in page.inner_text("#filters summary")
  page.fill("[data-column=price][data-end=most]", "-1")
  page.press("[data-column=price][data-end=most]", "Tab")
  until(page, "document.getElementById('status').textContent.includes('no item passes the filters')")
  assert not page.is_visible("#plain") and not page.is_visible("#adapted")


def test_a_large_whole_number_is_filtered_by_as_it_is_written(page):
  search(page, "a box")
  page.click("#filters summary")
  page.fill("[data-column=number][data-end=least]", str((1 << 60) + 34))
  page.press("[data-column=number][data-end=least]", "Tab")
  until(page, "document.querySelectorAll('#plain li').length === 2")
  assert sorted(found(page, "plain")) == ["shop/34", "shop/35"]


def test_what_a_link_asks_and_the_gallery_has_not_is_told(page, address):
  link = urllib.parse.quote(json.dumps({"size": 3, "price": {"most": 4, "least": 1}}))
  page.goto(f"{address}#q=a+box&filters={link}")
  page.reload()
  until(page, "document.querySelectorAll('#plain li').length === 6")
  said = page.inner_text("#error")
  assert "filters by size" in said and "price" not in said and "(1)" in page.inner_text("#filters summary")
  search(page, "a red box")
  assert page.inner_text("#error") == ""


def test_on_a_phone_one_touch_leads_to_the_adapted_side(page):
  page.set_viewport_size({"width": 390, "height": 800})
  search(page, "a red box")
  page.click("#jump")
  until(page, "Math.abs(adapted.getBoundingClientRect().top) < 50")
  page.set_viewport_size({"width": 1280, "height": 800})
  assert not page.is_visible("#jump")


def test_why_is_a_dialog_that_the_keyboard_closes(page):
  search(page, "a red box")
  page.focus("#adapted li .why >> nth=0")
  page.keyboard.press("Enter")
  page.wait_for_selector("#why-body table")
  text = page.inner_text("#why-body")
  assert "numerator" in text and "length" in text and "cosine" in text
  page.keyboard.press("Escape")
  page.wait_for_selector("#why", state="hidden")
  page.evaluate("document.activeElement.blur()")
  page.keyboard.press("/")
  assert page.evaluate("document.activeElement.id") == "text"


def test_why_explains_what_is_shown_whatever_has_been_typed_since(page):
  search(page, "a red box")
  said = []
  for typed in ("", "a blue box"):
    page.fill("#text", typed or "a red box")
    page.click("#adapted li .why >> nth=0")
    page.wait_for_selector("#why-body table")
    said.append(page.inner_text("#why-body"))
    page.keyboard.press("Escape")
    page.wait_for_selector("#why", state="hidden")
  assert said[0] == said[1]


def test_an_error_is_shown_to_the_person(page, shop, tmp_path):
  broken = tmp_path / "broken.png"
  broken.write_bytes(b"no picture")
  page.set_input_files("#file", str(broken))
  until(page, "document.getElementById('error').textContent.includes('no picture')")
  assert page.get_attribute("#error", "role") == "alert"
  page.expected.clear()  # the browser itself notes a 422
  page.click("#remove")
  assert search(page, "a red box") and page.inner_text("#error") == ""


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_screen_and_everything_has_a_name(page, width):
  page.set_viewport_size({"width": width, "height": 800})
  page.check("#scores")
  search(page, "a red box")
  assert page.evaluate("document.documentElement.scrollWidth") <= width
  side_by_side = page.evaluate("plain.getBoundingClientRect().top === adapted.getBoundingClientRect().top")
  assert side_by_side == (width > 1000)
  heights = page.eval_on_selector_all("li.card .line", "lines => lines.map(line => Math.round(line.offsetHeight))")
  assert len(set(heights)) == 1  # so that the rows of both sides lie beside each other
  page.select_option("#mode", "adapted")
  until(page, "document.getElementById('plain').hidden")
  assert "arrows" not in page.inner_text("#adapted-title")
  nameless = """[...document.querySelectorAll('button, input, select, img, a')].filter(e => e.offsetParent !== null &&
    !(e.ariaLabel || e.textContent.trim() || e.alt || e.title || e.labels?.length)).map(e => e.outerHTML)"""
  assert page.evaluate(nameless) == []


def test_a_key_is_asked_for_and_used(browser, served, address, page):
  assert pathlib.Path(CHROMIUM).exists()
  port = int(address.rsplit(":", 1)[1].strip("/")) + 1
  state = State(Limits(seconds=120))
  state.service = served
  with in_thread(create(state, "secret"), port):
    context = browser.new_context()
    other = context.new_page()
    other.goto(f"http://127.0.0.1:{port}/#q=a+red+box")
    other.fill("#key", "schlüssel")
    other.press("#key", "Enter")
    until(other, "document.getElementById('ask-title').textContent === 'This was not the key'")
    other.fill("#key", " secret ")
    other.press("#key", "Enter")
    other.wait_for_selector("#plain li img")
    until(other, "[...document.querySelectorAll('#plain img')].slice(0, 2).every(i => i.naturalWidth > 0)")
    context.close()
