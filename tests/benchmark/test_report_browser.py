"""The report in a browser: it opens at once, sorts, filters, animates, fits a phone, and asks no network."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from browser_cases import MISSING, REASON, make_driver, resize
from report_cases import make_results

from dxmi_rl.benchmark.report import write_report

pytestmark = [pytest.mark.browser, pytest.mark.skipif(bool(MISSING), reason=REASON)]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_report(make_results(), tmp_path_factory.mktemp("report"))[0].as_uri()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    driver = make_driver(tmp_path_factory.mktemp("profile"))
    yield driver
    driver.quit()


@pytest.fixture
def driver(browser: Any, address: str) -> Iterator[Any]:
    """The page, opened anew at 1280 pixels."""
    resize(browser, 1280)
    emulate(browser, "light")
    browser.get(address)
    yield browser


def emulate(driver: Any, scheme: str, motion: str = "no-preference", media: str = "") -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}, {"name": "prefers-reduced-motion", "value": motion}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})


def column(driver: Any, index: int) -> list[str]:
    """Texts of the visible cells of a column of the first big table."""
    return driver.execute_script(
        "return [...document.querySelector('table.big').tBodies[0].rows].filter(row => !row.hidden)"
        ".map(row => row.cells[arguments[0]].textContent)", index,
    )  # fmt: skip


@pytest.mark.slow
def test_opens_at_once_without_errors_or_network(browser: Any, address: str) -> None:
    browser.get("about:blank")
    for kind in ("browser", "performance"):
        browser.get_log(kind)
    browser.get(address)
    entry = browser.execute_script("return performance.getEntriesByType('navigation')[0].toJSON()")
    assert entry["loadEventEnd"] < 2000
    assert browser.get_log("browser") == []
    messages = [json.loads(line["message"])["message"] for line in browser.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert [url for url in asked if not url.startswith("data:")] == [address]


@pytest.mark.slow
def test_sorting_by_mouse_and_keyboard(driver: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    header = driver.execute_script(
        "return [...document.querySelectorAll('table.big th')].find(h => h.textContent === 'last iterate')"
    )
    button = header.find_element("css selector", "button")
    button.click()
    assert header.get_attribute("aria-sort") == "ascending"
    values = [float(text.split()[0]) for text in column(driver, 3)]
    assert values == sorted(values)
    button.send_keys(Keys.ENTER)
    assert header.get_attribute("aria-sort") == "descending"
    values = [float(text.split()[0]) for text in column(driver, 3)]
    assert values == sorted(values, reverse=True)
    driver.find_element("css selector", "table.big th button").click()
    assert header.get_attribute("aria-sort") is None
    assert column(driver, 0)[0].startswith("base")


@pytest.mark.slow
def test_filters(driver: Any) -> None:
    from selenium.webdriver.support.ui import Select

    task, label = (Select(driver.find_element("id", f"filter-{name}")) for name in ("task", "label"))
    assert driver.find_element("id", "filter-count").text == "16 rows"
    task.select_by_value("gmm25")
    assert set(column(driver, 1)) == {"gmm25"}
    label.select_by_value("ppo")
    assert column(driver, 0) == ["ppogmm25"]
    assert driver.find_element("id", "filter-count").text == "1 of 16 rows"
    task.select_by_value("")
    label.select_by_value("")
    driver.find_element("id", "filter-text").send_keys("sb3 digits")
    assert column(driver, 0) == ["sb3-ppodigits"]
    extra = driver.find_element("css selector", "table.big th.extra")
    assert not extra.is_displayed()
    driver.find_element("id", "all-columns").click()
    assert extra.is_displayed()


def picture(driver: Any, element: Any) -> str:
    return driver.execute_script("return arguments[0].toDataURL()", element)


def move(driver: Any, slider: Any, value: float) -> None:
    driver.execute_script(
        "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input'))", slider, value
    )


@pytest.mark.slow
@pytest.mark.parametrize("task", ["gmm25", "digits"])
def test_slider_and_play_move_the_samples(driver: Any, task: str) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    scene = driver.find_element("css selector", f".scene[data-task='{task}']")
    driver.execute_script("arguments[0].scrollIntoView()", scene)
    WebDriverWait(driver, 5).until(lambda _: "drawn" in scene.get_attribute("class"))
    exact, agent = scene.find_elements("css selector", "canvas")[:2]
    slider = scene.find_element("css selector", "input[type=range]")
    pictures = []
    for value in (0, 0.5, 1, float(slider.get_attribute("max"))):
        move(driver, slider, value)
        pictures.append(picture(driver, agent))
    assert len(set(pictures)) == 4
    still = picture(driver, exact)
    move(driver, slider, 0)
    assert picture(driver, exact) == still
    play = scene.find_element("css selector", ".play")
    play.click()
    WebDriverWait(driver, 5).until(lambda _: float(slider.get_attribute("value")) > 0.5)
    assert "pause" in play.text
    play.click()
    stopped = slider.get_attribute("value")
    assert "play" in play.text
    assert slider.get_attribute("value") == stopped


@pytest.mark.slow
def test_reduced_motion_jumps_from_step_to_step(driver: Any) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    emulate(driver, "light", motion="reduce")
    scene = driver.find_element("css selector", ".scene")
    driver.execute_script("arguments[0].scrollIntoView()", scene)
    WebDriverWait(driver, 5).until(lambda _: "drawn" in scene.get_attribute("class"))
    slider = scene.find_element("css selector", "input[type=range]")
    scene.find_element("css selector", ".play").click()
    seen = set()
    WebDriverWait(driver, 5, poll_frequency=0.05).until(
        lambda _: seen.add(slider.get_attribute("value")) or "2" in seen
    )
    assert all(value.isdigit() for value in seen)


@pytest.mark.parametrize("width", [375, 768, 1280])
def test_no_sideways_scrolling(driver: Any, width: int) -> None:
    resize(driver, width)
    driver.execute_script("document.querySelectorAll('details').forEach(d => { d.open = true })")
    assert driver.execute_script("return document.documentElement.scrollWidth") <= width


LUMINANCE = r"""
const luminance = (text) => {
  const [r, g, b] = text.match(/[\d.]+/g).slice(0, 3).map(x => x / 255)
    .map(x => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const behind = (element) => {
  for (let e = element; e; e = e.parentElement) {
    const colour = getComputedStyle(e).backgroundColor;
    if (!colour.startsWith("rgba(0, 0, 0, 0") && colour !== "transparent") return colour;
  }
  return "rgb(255, 255, 255)";
};
return arguments[0].map(selector => {
  const element = document.querySelector(selector), style = getComputedStyle(element);
  const colour = selector.endsWith("text") ? style.fill : style.color;
  const pair = [luminance(colour), luminance(behind(element))].sort((a, b) => b - a);
  return (pair[0] + 0.05) / (pair[1] + 0.05);
});
"""
SAMPLED = ["body", ".note", ".verdict", ".mark", "a", "dt", "code", "caption", "thead button", ".copy",
           "figcaption small", "svg.chart text", ".facts dd", "select"]  # fmt: skip


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(driver: Any, scheme: str) -> None:
    emulate(driver, scheme)
    background = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
    red = int(re.findall(r"\d+", background)[0])
    assert red > 240 if scheme == "light" else red < 40
    for selector, contrast in zip(SAMPLED, driver.execute_script(LUMINANCE, SAMPLED), strict=True):
        assert contrast >= 4.5, selector


@pytest.mark.slow
def test_print_shows_the_samples(driver: Any) -> None:
    emulate(driver, "light", media="print")
    pictures = driver.find_elements("css selector", ".picture img")
    assert pictures and all(image.is_displayed() for image in pictures)
    assert not driver.find_element("css selector", ".filters").is_displayed()


def test_copy_button(driver: Any) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    expected = driver.find_element("css selector", ".rerun code").text

    def copied(_: Any) -> bool:
        # Anew until it holds: on a busy machine the page may still be coming, and take the script's window with it.
        driver.execute_script(
            "const clipboard = { writeText: async (text) => { window.copied = text; } };"
            "Object.defineProperty(navigator, 'clipboard', { value: clipboard, configurable: true });"
            "document.querySelector('.rerun .copy').click()"
        )
        return driver.execute_script("return window.copied") == expected

    WebDriverWait(driver, 10).until(copied)
    WebDriverWait(driver, 5).until(lambda _: driver.find_element("id", "status").get_attribute("textContent"))
    assert driver.find_element("id", "status").get_attribute("textContent") == "Command copied."


@pytest.mark.slow
def test_without_scripts_the_samples_are_there(browser: Any, address: str) -> None:
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.get(address)
        images = browser.find_elements("css selector", ".picture img")
        assert images and all(image.is_displayed() for image in images)
        assert not browser.find_element("css selector", ".filters").is_displayed()
        assert not browser.find_element("css selector", ".copy").is_displayed()
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
