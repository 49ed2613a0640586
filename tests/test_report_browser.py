"""The report in a real browser, opened from disk: curves, filters, search, keyboard, both colour schemes."""

import os
import shutil

import pytest
from report_folder import HOSTILE, R1, sample, write_pipeline, write_samples

from r1jax import report

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
         "--disable-sync", "--no-first-run"]


@pytest.fixture(scope="module")
def chromium():
  with playwright.sync_playwright() as p:
    try:
      browser = p.chromium.launch(executable_path=CHROMIUM, args=QUIET)
    except playwright.Error as error:
      pytest.skip(f"no Chromium: {str(error).splitlines()[0]}")
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
  run = tmp_path_factory.mktemp("pipeline")
  write_pipeline(run)
  write_samples(run, 60, [sample(60, stage="r1", problem=99, text=HOSTILE, prompt=HOSTILE, verdict=HOSTILE)], "r1")
  return report.write(run)


@pytest.fixture
def page(chromium, written):
  """The open page; afterwards nothing may have been asked of the network or complained of on the console."""
  page = chromium.new_page(viewport=dict(width=1280, height=900))
  complaints, asked = [], []
  page.on("console", lambda message: complaints.append(message.text))
  page.on("pageerror", lambda error: complaints.append(str(error)))
  page.on("dialog", lambda dialog: (complaints.append("alert"), dialog.dismiss()))
  page.on("request", lambda request: asked.append(request.url))
  page.goto(written.as_uri())
  yield page
  page.close()
  assert complaints == [] and asked == [written.as_uri()]


def rows(page):
  return page.locator(".list li")


def chosen(page):
  return page.locator(".list li[aria-selected=true]").inner_text().split()


def test_every_figure_is_drawn_once_it_is_seen(page):
  page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
  page.wait_for_timeout(300)
  empty = page.evaluate("[...document.querySelectorAll('figure')].filter(f => !f.querySelector('.curve')).length")
  assert empty == 0 and page.locator("figure").count() > 20
  assert page.locator("figure").first.locator(".name").all_text_contents() == ["zero", "dev2", "r1"]
  assert page.locator("figure").first.locator(".bound").count() == 2
  lines = page.locator("figure").first.locator("svg path.curve[d*=L]").all()
  assert [line.get_attribute("d").count("M") for line in lines] == [3, 3, 3]      # no line from stage to stage
  assert page.locator(".plot .span").count() == 2      # r1's fall, shaded in both of its charts


def test_one_curve_is_read_with_the_arrow_keys_across_stages(page):
  plot = page.locator("figure .plot").first
  plot.focus()
  page.keyboard.press("Home")
  assert plot.get_attribute("aria-valuetext").startswith("zero 0: training answers 30.0%")
  for _ in range(6):
    page.keyboard.press("Shift+ArrowRight")
  assert plot.get_attribute("aria-valuetext").startswith("dev2 0: training answers 55.0%")


def test_filters_leave_what_fits_and_say_how_many(page):
  assert rows(page).count() == 25
  page.get_by_label("Stage").select_option("r1")
  page.get_by_label("Scenario").select_option("unsafe")
  texts = rows(page).all_inner_texts()
  assert texts and all("·" in text and "r1, " in text for text in texts)      # neither right nor wrong
  assert "does not apply" in page.locator(".detail .facts").inner_text()
  page.get_by_label("Scenario").select_option("reasoning")
  page.get_by_label("Verdict").select_option("wrong")
  page.get_by_label("Reward from").fill("1.5")
  assert rows(page).count() == 0 and "no answer fits" in page.locator(".pager").inner_text()
  page.get_by_label("Reward from").fill("")
  assert rows(page).count() > 0 and "✗" in rows(page).first.inner_text()
  page.get_by_label("Stage").select_option("sft_data")
  page.get_by_label("Filter").select_option("dropped: wrong")
  assert "left out by wrong" in page.locator(".detail .facts").inner_text()


def test_the_keyboard_alone_searches_walks_and_turns_pages(page):
  page.keyboard.press("j")
  assert page.evaluate("document.activeElement.className") == "list"
  assert page.locator(".list li").nth(1).get_attribute("aria-selected") == "true"
  page.keyboard.press("k")
  page.keyboard.press("ArrowDown")
  page.keyboard.press("ArrowDown")
  assert page.locator(".list li").nth(2).get_attribute("aria-selected") == "true"
  page.keyboard.press("]")
  assert page.locator(".pager").inner_text().split("page ")[1].startswith("2 of")
  page.keyboard.press("k")                           # over the page's edge
  assert page.locator(".pager").inner_text().split("page ")[1].startswith("1 of")
  page.keyboard.press("/")
  page.keyboard.type("jk/[")                          # typed, not commands
  assert page.locator("input.search").input_value() == "jk/[" and rows(page).count() == 0
  page.locator("input.search").fill("zebra")
  count = int(page.locator("#browser .note").inner_text().split()[0])
  assert 0 < count < 100 and page.locator(".detail mark").all_inner_texts() == ["zebra"]
  page.keyboard.press("Escape")
  page.keyboard.press("j")
  assert page.locator("input.search").input_value() == "zebra"      # Escape leaves it; j is a command again
  page.keyboard.press("End")
  assert page.locator(".pager button").last.is_disabled()


def test_the_other_answers_to_the_same_prompt_are_a_click_away(page):
  before = page.locator(".detail .texts").inner_text()
  chips = page.locator(".chips button")
  assert chips.count() == 4 and chips.first.get_attribute("class") == "chosen"
  chips.nth(1).click()
  after = page.locator(".detail .texts").inner_text()
  assert before != after and page.locator(".chips .chosen").inner_text().startswith("2")


def test_hostile_answers_are_shown_and_not_run(page):
  page.get_by_label("Step", exact=True).select_option("step 60")
  assert page.locator(".detail pre").all_inner_texts()[1].startswith("</script><script>alert(1)")
  assert page.locator("#browser img, #browser script").count() == 0


@pytest.mark.parametrize("width", [1280, 400])
def test_nothing_sticks_out_of_the_page(page, width):
  page.set_viewport_size(dict(width=width, height=900))
  page.wait_for_timeout(100)
  assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_dark_is_dark_and_both_can_be_read(page):
  luminance = """(css) => { const [r, g, b] = css.match(/[\\d.]+/g).map(x => (x / 255) ** 2.2)
    return .2126 * r + .7152 * g + .0722 * b }"""
  for scheme, dark in (("light", False), ("dark", True)):
    page.emulate_media(color_scheme=scheme)
    colours = page.evaluate("""(selectors) => selectors.map(s => {
      let node = document.querySelector(s), ground = node
      while (getComputedStyle(ground).backgroundColor === "rgba(0, 0, 0, 0)") ground = ground.parentElement
      return [getComputedStyle(node).color, getComputedStyle(ground).backgroundColor] })""",
      ["body", "[aria-selected=false] .from", ".detail pre", ".controls select", "aside li", "td",
       "[aria-selected=false] b.bad", ".note"])
    for ink, paper in colours:
      ink, paper = (page.evaluate(luminance, css) for css in (ink, paper))
      assert (paper < ink) == dark
      assert (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05) > 4.4      # WCAG AA is 4.5


def test_all_stages_are_there(page):
  assert page.locator(".lineage tbody tr td:first-child").all_inner_texts() == list(R1)
