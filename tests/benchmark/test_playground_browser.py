"""The playground in a browser, clicked through: what is chosen is shown, stays in the address, and asks no network."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from browser_cases import MISSING, REASON, make_driver, resize
from report_cases import make_results

from dxmi_rl.benchmark.report import write_report

pytestmark = [pytest.mark.browser, pytest.mark.skipif(bool(MISSING), reason=REASON), pytest.mark.slow]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("report")
    write_report(make_results(seeds=2), folder)
    return (folder / "playground.html").as_uri()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    driver = make_driver(tmp_path_factory.mktemp("profile"))
    resize(driver, 1280)
    yield driver
    driver.quit()


@pytest.fixture
def driver(browser: Any, address: str) -> Iterator[Any]:
    """The page, opened anew."""
    browser.get("about:blank")
    browser.get(address)
    yield browser
    assert browser.get_log("browser") == []


def choose(driver: Any, name: str, value: str) -> None:
    from selenium.webdriver.support.ui import Select

    Select(driver.find_element("id", name)).select_by_value(value)


def chosen(driver: Any) -> dict[str, str]:
    """What the address keeps."""
    return {key: values[0] for key, values in parse_qs(urlsplit(driver.current_url).fragment).items()}


def texts(driver: Any, selector: str) -> list[str]:
    return [element.text for element in driver.find_elements("css selector", selector)]


def picture(driver: Any) -> str:
    return str(driver.execute_script("return document.getElementById('canvas').toDataURL()"))


def test_choices_change_what_is_shown(driver: Any) -> None:
    first = {"task": "8gaussians", "agent": "base", "T": "5", "seed": "0", "colour": "energy", "t": "5", "path": "0"}
    assert chosen(driver) == first
    assert texts(driver, "#task option") == ["8gaussians", "gmm25", "digits", "manywell32"]
    assert len(texts(driver, "#charts svg")) == 3 and len(texts(driver, "#table tbody tr")) == 6
    before = picture(driver)
    choose(driver, "agent", "dxdp")
    choose(driver, "seed", "1")
    assert "dxdp on 8gaussians, T = 5, seed 1: kl_bound_fit" in driver.find_element("id", "facts").text
    assert "Effective sample size" in driver.find_element("id", "facts").text
    assert picture(driver) != before
    before = picture(driver)
    choose(driver, "colour", "nothing")
    assert picture(driver) != before and not driver.find_element("id", "scale").is_displayed()
    choose(driver, "task", "digits")
    assert texts(driver, "#T option") == ["4"] and len(texts(driver, "#charts svg")) == 1
    assert texts(driver, "#table thead th") == ["t", "energy"]


def test_steps_paths_and_play(driver: Any) -> None:
    from selenium.webdriver import ActionChains, Keys
    from selenium.webdriver.support.ui import WebDriverWait

    slider, number = (driver.find_element("id", name) for name in ("t", "path"))
    before = picture(driver)
    slider.send_keys(Keys.HOME)
    assert chosen(driver)["t"] == "0" and picture(driver) != before
    assert "at t = 0" in driver.find_element("id", "facts").text
    number.send_keys(Keys.BACKSPACE, "17")
    assert chosen(driver)["path"] == "17" and texts(driver, "#table caption") == ["Path 17"]
    canvas = driver.find_element("id", "canvas")
    ActionChains(driver).move_to_element_with_offset(canvas, 80, 40).click().perform()
    assert chosen(driver)["path"] not in ("0", "17")
    play = driver.find_element("id", "play")
    play.click()
    assert play.text == "❚❚ pause"
    WebDriverWait(driver, 15).until(lambda _: play.text == "▶ play")
    assert chosen(driver)["t"] == "5"


def test_an_address_is_a_permanent_link(driver: Any, address: str) -> None:
    driver.get("about:blank")
    driver.get(f"{address}#task=gmm25&agent=ppo&T=5&seed=1&colour=log_weight&t=2&path=9")
    assert "ppo on gmm25, T = 5, seed 1" in driver.find_element("id", "facts").text
    assert driver.find_element("id", "t-text").text == "2 of 5" and texts(driver, "#table caption") == ["Path 9"]
    driver.execute_script("location.hash = '#task=nowhere&agent=%3Cb%3E&t=99&path=-5'")
    assert chosen(driver)["task"] == "8gaussians" and chosen(driver)["t"] == "5" and chosen(driver)["path"] == "0"
