"""The web console as a person uses it: Chromium, and `octavo serve` with the demo model."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.server.conftest import wait_for

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("playwright") is None, reason="playwright is not installed"),
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium"),
]
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]
KEY = "a-key"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    log = tmp_path_factory.mktemp("console") / "log"
    command = [sys.executable, "-m", "octavo.cli.main", "serve", "--port", "0", "--device", "cpu"]
    with log.open("w") as stderr:
        options = ["--num-kv-blocks", "512", "--api-key", KEY]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen([*command, *options], stderr=stderr, env=env)
    wait_for(lambda: "curl" in log.read_text() or process.poll() is not None, seconds=60)
    found = re.search(r"http://127\.0\.0\.1:\d+", log.read_text())
    assert found is not None and process.poll() is None, log.read_text()
    yield found[0]
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    try:
        process.wait(20)
    finally:
        process.kill()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Any, url: str) -> Iterator[Any]:
    """The console, with the key. Nothing may be complained of, and nothing asked of anybody else."""
    context = browser.new_context(color_scheme="dark", viewport={"width": 1300, "height": 900})
    context.add_init_script(f"sessionStorage.getItem('octavo-key') ?? sessionStorage.setItem('octavo-key', '{KEY}')")
    context.set_default_timeout(60_000)
    found = context.new_page()
    complaints: list[str] = []
    found.on("pageerror", lambda error: complaints.append(str(error)))
    # That an answer has status 400 or 401 is told on the console by Chromium itself.
    found.on(
        "console",
        lambda m: m.type in ("error", "warning") and "status of 4" not in m.text and complaints.append(m.text),
    )
    found.on("request", lambda request: request.url.startswith(url) or complaints.append(request.url))
    found.goto(url)
    found.locator("#status[data-state=ready]").wait_for()
    yield found
    context.close()
    assert complaints == []


def say(page: Any, text: str) -> None:
    page.locator("#say").fill(text)
    page.locator("#say").press("Enter")


def until(page: Any, expression: str) -> None:
    """Polls from here: the page's policy lets nobody evaluate texts in it."""
    wait_for(lambda: page.evaluate(expression), seconds=60)


def parameter(page: Any, name: str, value: str) -> None:
    if not page.locator(f"#{name}").is_visible():
        page.locator("#settings summary").click()
    page.locator(f"#{name}").fill(value)


def counts(page: Any) -> dict[str, int]:
    return json.loads(page.locator("#map").get_attribute("data-seen"))


def test_a_chat_with_probabilities_by_keys_alone(page: Any) -> None:
    page.locator("#say").focus()
    page.keyboard.type("What is 17 + 25?")
    page.keyboard.press("Enter")
    page.locator(".regenerate").wait_for()
    answer = page.locator("article.assistant .text")
    assert "42" in answer.inner_text()
    assert "42" in page.locator("#announce").inner_text()
    for _ in range(3):  # Send, the parameters, and around: what was answered comes before the message
        page.keyboard.press("Shift+Tab")
    assert page.evaluate("document.activeElement.className") == "text"
    page.keyboard.press("ArrowRight")
    tip = page.locator("#tip")
    tip.wait_for()
    assert tip.locator(".row").count() >= 5 and tip.locator(".chosen").count() == 1
    assert "%" in page.locator("#announce").inner_text()
    page.keyboard.press("Escape")
    tip.wait_for(state="hidden")
    answer.locator(".token").nth(1).hover()
    tip.wait_for()
    page.locator("#probabilities").uncheck()
    answer.locator(".token").nth(2).hover()
    tip.wait_for(state="hidden")


def test_an_answer_streams_and_is_stopped(page: Any) -> None:
    page.evaluate("window.seen = new Set()")
    page.evaluate(
        "new MutationObserver(() => seen.add(document.querySelector('article.assistant .text')?.textContent.length))"
        ".observe(document.getElementById('messages'), {childList: true, subtree: true, characterData: true})"
    )
    page.evaluate(
        "(f => window.fetch = (u, o) => f(u, o?.body ? {...o, body: o.body.replace('{', '{\"ignore_eos\":true,')} : o))"
        "(window.fetch)"
    )
    say(page, "Tell me a long story.")
    until(page, "seen.size > 3")
    page.locator("#stop").click()
    page.locator(".doing", has_text="stopped").wait_for()
    assert page.locator("#send").is_visible()
    until(page, "JSON.parse(document.getElementById('map').dataset.seen).held === 0")


def test_the_map_under_load(page: Any) -> None:
    page.locator("#try").click()
    until(page, "JSON.parse(document.getElementById('map').dataset.seen).shared > 0")
    page.locator("#requests tbody tr").first.focus()
    assert "reader-" in page.locator("#requests tbody tr").first.inner_text()
    until(page, "!document.getElementById('try').disabled")
    until(page, "JSON.parse(document.getElementById('map').dataset.seen).held === 0")
    found = counts(page)
    assert found["cached"] > 0 and found["free"] + found["cached"] == 512
    page.locator("#map").focus()
    said = []
    for _ in range(3):
        page.keyboard.press("ArrowRight")
        said.append(page.locator("#explain").inner_text())
    assert all(re.match(r"Block \d+: ", each) for each in said) and len(set(said)) == 3
    assert page.locator("#notice").is_hidden()


def test_errors_are_shown(page: Any) -> None:
    parameter(page, "max_tokens", "-5")
    say(page, "Hello!")
    notice = page.locator("#notice")
    notice.wait_for()
    assert "max_tokens" in notice.inner_text() and "request " in notice.inner_text()
    parameter(page, "max_tokens", "5")
    notice.get_by_role("button", name="Try again").click()
    page.locator(".regenerate").wait_for()
    assert notice.is_hidden() and page.locator("article.user").count() == 1


def test_the_key_is_asked_for(page: Any) -> None:
    page.evaluate("sessionStorage.setItem('octavo-key', 'wrong')")
    dialog = page.locator("#key-dialog")
    dialog.wait_for()
    assert "not accepted" in dialog.inner_text()
    page.locator("#key").fill(KEY)
    page.keyboard.press("Enter")
    dialog.wait_for(state="hidden")
    page.locator("#status[data-state=ready]").wait_for()
    assert page.evaluate("sessionStorage.getItem('octavo-key')") == KEY


# The relative luminance of WCAG 2, and the contrast of two colours as [r, g, b].
CONTRAST = """(id) => {
  const light = (rgb) => rgb.map((c) => c / 255).map((c) => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [.2126, .7152, .0722][i], 0);
  const numbers = (text) => text.match(/\\d+/g).slice(0, 3).map(Number);
  const style = (name) => getComputedStyle(document.querySelector(name));
  const [a, b] = [style(id).color, style("html").backgroundColor].map((each) => light(numbers(each)) + .05);
  return Math.max(a, b) / Math.min(a, b);
}"""


def test_light_and_dark(page: Any) -> None:
    for theme in ("dark", "light"):
        assert page.locator("html").get_attribute("data-theme") == theme
        for name in ("body", "#about", "#status", "dt"):
            assert page.evaluate(CONTRAST, name) >= 4.5, (theme, name)
        page.locator("#theme").click()
    page.reload()
    assert page.locator("html").get_attribute("data-theme") == "dark"
