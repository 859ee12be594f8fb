"""`ease open` as people use it, in Chromium: search, follow, a phone, the keyboard alone, light and dark."""

import re
import shutil
import socket
import threading
from contextlib import ExitStack, contextmanager

import pytest

from ease_flwr.web import search, server
from tests.test_open import round_, write


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        made = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield made
        made.close()


@contextmanager
def served(folder):
    """The address of the page of a run."""
    listening = socket.create_server(("127.0.0.1", 0))
    running = server.uvicorn_server(server.application(folder, "secret", search.Own(most=200)))
    thread = threading.Thread(target=running.run, args=([listening],))
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/secret/"
    finally:
        running.should_exit = True
        thread.join()


@pytest.fixture
def open_page(browser):
    """The page of a run, in a window of its own; at the end nothing may have gone wrong in it."""
    contexts, wrong, servers = [], [], ExitStack()

    def opened(folder, **how):
        address = servers.enter_context(served(folder))
        contexts.append(browser.new_context(**how))
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on(
            "console", lambda said: wrong.append(said.text) if said.type == "error" and "400 (Bad" not in said.text else None
        )
        page.goto(address)
        return page

    with servers:
        yield opened
        for context in contexts:  # before their servers: a page asks on
            context.close()
    assert wrong == []


def test_searching_in_a_browser(reported, open_page, tmp_path):
    page = open_page(reported)
    page.wait_for_selector("#offered img", timeout=120_000)
    caption = page.locator("#offered .pair").nth(1).inner_text()
    page.fill("#caption", caption)
    page.click("text=Find pictures")
    page.wait_for_selector("#found li")
    assert page.locator("#found h3").all_inner_texts() == ["original", "unlearned", "retrain"]
    assert page.locator("#found li").count() == 15
    shown = page.locator("#found img").first
    assert shown.evaluate("e => e.complete && e.naturalWidth") > 0
    shown.click()
    page.wait_for_selector("text=Captions for the picture:")
    assert page.locator("#found li.rightone").count() >= 1
    tmp_path.joinpath("one.png").write_bytes(search.Search.png(server_gallery(reported), 0))
    page.set_input_files("#file", tmp_path / "one.png")
    page.wait_for_selector("text=Captions for one.png:")
    page.set_input_files("#file", {"name": "b.txt", "mimeType": "image/png", "buffer": b"no picture"})
    page.wait_for_selector("text=not a picture")
    assert "Verdict" in page.inner_text("main")


def server_gallery(folder):
    """What `png` reads of a search, without its models."""
    made = search.Search.__new__(search.Search)
    made.gallery = search.gallery(folder, search.Own(most=200))
    return made


def test_following_a_run_until_it_is_its_report(reported, open_page, tmp_path):
    folder = shutil.copytree(reported, tmp_path / "run")
    results = (folder / "results.json").read_text()
    (folder / "results.json").unlink()
    write(folder, "running", round_("learn", 1), log="[learn 1/5]\n")
    page = open_page(folder)
    page.wait_for_selector("text=1 of 5")
    assert "2 of 3" in page.inner_text("#now")
    seen = {"model": "learn", "round": 2, "rounds_in_all": 2, "validation": {"retain": 43.21, "test": 50.0}}
    write(folder, "running", round_("learn", 1), round_("learn", 2), seen, log="[learn 2/5]\n")
    page.wait_for_selector("text=2 of 5")
    assert "43.2 %" in page.inner_text("#now")
    assert "[learn 2/5]" in page.inner_text("#log")
    assert page.locator("#charts svg").count() == 2
    assert page.locator("#charts circle").count() == 3
    (folder / "results.json").write_text(results)
    (folder / "report.html").touch()
    write(folder, "failed", error="the disk is full")
    page.wait_for_selector("text=Stopped: the disk is full")  # and not the report of before
    write(folder, "finished")
    (folder / "report.html").touch()
    page.wait_for_selector("h2:has-text('Verdict')")
    page.wait_for_selector("#offered img", timeout=120_000)


def test_a_run_without_a_report_shows_its_table_and_searches(reported, open_page, tmp_path):
    folder = shutil.copytree(reported, tmp_path / "run")
    (folder / "report.html").unlink()
    page = open_page(folder)
    page.wait_for_selector("text=There is no report yet")
    assert "| original |" in page.inner_text("#log")
    page.wait_for_selector("#offered img", timeout=120_000)


@pytest.mark.parametrize("width", [390, 320])
def test_on_a_phone_nothing_is_cut_off(reported, open_page, width, tmp_path):
    at_work = tmp_path / "a-run-with-a-name-as-long-as-that-of-an-experiment-with-variants-20261126-114500"
    write(at_work, "running", round_("learn", 1), log="x" * 300)
    for folder, ready in ((reported, "#offered img"), (at_work, "#charts svg")):
        page = open_page(folder, viewport={"width": width, "height": 800})
        page.wait_for_selector(ready, timeout=120_000)
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_by_keyboard_alone(reported, open_page):
    page = open_page(reported)
    page.wait_for_selector("#offered img", timeout=120_000)
    reached = []
    for _ in range(8):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.textContent"))
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none", reached
    assert reached[:3] == ["caption", "Find pictures", "file"]
    page.focus("#caption")
    page.keyboard.type("large red circle")
    page.keyboard.press("Enter")
    page.wait_for_selector("#found li")
    page.focus("#found button")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=Captions for the picture:")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_light_and_dark(reported, open_page, scheme):
    """Contrast of WCAG 2: 4.5 or more for text."""
    page = open_page(reported, color_scheme=scheme)
    page.wait_for_selector("#offered img", timeout=120_000)
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    for chosen in ("h1", "#search p", "#caption", "#offered .pair", "#offered .set", "figcaption"):
        colour = page.evaluate("s => getComputedStyle(document.querySelector(s)).color", chosen)
        assert contrast(colour, ground) >= 4.5, (chosen, colour, ground)


def contrast(*colours):
    def luminance(colour):
        parts = [int(v) / 255 for v in re.findall(r"\d+", colour)[:3]]
        r, g, b = (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    low, high = sorted(map(luminance, colours))
    return (high + 0.05) / (low + 0.05)


def test_contrast_by_hand():
    assert contrast("rgb(0, 0, 0)", "rgb(255, 255, 255)") == pytest.approx(21)
