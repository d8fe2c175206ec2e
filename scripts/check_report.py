#!/usr/bin/env python3
"""Opens a page of `llama-lite report` in a headless Chromium and checks what a reader would: it draws, moves, and asks for nothing.

  pip install selenium     (and chromium with chromedriver on the PATH)
  llama-lite report RUN... --out report.html
  python scripts/check_report.py report.html [--screenshots DIR]

Charts are there and have lines; the slider of the samples and the arrow keys change what is shown; the axis and the theme can be
switched; nothing is wider than a telephone; the console has no errors; the only address that is opened is the file. Exit 1 if not.
"""

import argparse
import json
import sys
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys


def main() -> None:
    """Looks at the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("page", type=Path)
    parser.add_argument("--screenshots", type=Path)
    args = parser.parse_args()
    options = webdriver.ChromeOptions()
    for flag in ["--headless=new", "--no-sandbox", "--window-size=1280,1600"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options=options)
    failed = False

    def check(what: str, good: bool) -> None:
        nonlocal failed
        failed |= not good
        print(f"{'ok    ' if good else 'FAILED'} {what}")

    def shot(name: str) -> None:
        if args.screenshots:
            args.screenshots.mkdir(parents=True, exist_ok=True)
            size = browser.get_window_size()
            browser.set_window_size(size["width"], browser.execute_script("return document.documentElement.scrollHeight") + 150)
            browser.save_screenshot(str(args.screenshots / f"{name}.png"))
            browser.set_window_size(size["width"], size["height"])

    address = args.page.resolve().as_uri()
    browser.get(address)
    data = json.loads(browser.execute_script("return document.getElementById('data').textContent"))
    figures = browser.find_elements(By.CSS_SELECTOR, "figure")
    drawn = browser.execute_script(
        "return [...document.querySelectorAll('figure')].map(f => [...f.querySelectorAll('path')].some(p => p.getAttribute('d').length > 3))"
    )
    check(f"{len(figures)} charts, all with lines", len(figures) >= 5 and all(drawn))
    broken = browser.execute_script("return ['main', 'header'].some(e => /NaN|undefined/.test(document.querySelector(e).innerHTML))")
    check("no coordinate is missing", not broken)
    labels = [f.find_element(By.CSS_SELECTOR, "svg").get_attribute("aria-label") for f in figures]
    check("every chart says what it shows", all(labels))
    shot("light")

    chart = figures[0].find_element(By.CSS_SELECTOR, "svg")
    read = figures[0].find_element(By.CSS_SELECTOR, ".read")
    before = read.text
    chart.send_keys(Keys.HOME)
    check("arrow keys move within a chart", read.text != before)
    sliders = browser.find_elements(By.CSS_SELECTOR, "input[type=range]")
    wanted = sum(bool(run["samples"]) for run in data["runs"])
    check(f"{len(sliders)} sliders for {wanted} runs with samples", len(sliders) == wanted)
    for slider in sliders:
        text = slider.find_element(By.XPATH, "../..").find_element(By.CSS_SELECTOR, "pre")
        last, steps = text.text, int(slider.get_attribute("max"))
        slider.send_keys(Keys.HOME)
        check(f"a slider over {steps + 1} steps changes the text", steps == 0 or text.text != last)
    layers = browser.find_elements(By.CSS_SELECTOR, "#layers select")
    wanted = sum(bool(run["layers"]) for run in data["runs"])
    shown = "return [...document.querySelectorAll('#layers figure')].findIndex(f => f.offsetParent)"
    first = browser.execute_script(shown)
    if layers:
        layers[0].send_keys(Keys.ARROW_DOWN)
    check("the layers of another run can be chosen", bool(layers) == (wanted > 1) and (not layers or browser.execute_script(shown) != first))
    scores = browser.find_elements(By.CSS_SELECTOR, "#evaluations:not([hidden]) #scores")
    for select in scores:
        score = "return document.querySelector('#eval-charts path').getAttribute('d')"
        before = browser.execute_script(score)
        select.find_element(By.CSS_SELECTOR, "option[value=val]").click()
        check("scores can be seen against validation loss", browser.execute_script(score) != before)
    path = "return document.querySelector('figure path').getAttribute('d')"
    tokens = browser.execute_script(path)
    browser.find_element(By.CSS_SELECTOR, "#x option[value=step]").click()
    check("the axis can be steps", len(data["runs"]) == 1 or browser.execute_script(path) != tokens or tokens)
    color = "return getComputedStyle(document.body).backgroundColor"
    light = browser.execute_script(color)
    browser.find_element(By.ID, "theme").click()
    check("light and dark", browser.execute_script(color) != light)
    shot("dark")
    browser.set_window_size(500, 900)
    shot("narrow")
    wide = browser.execute_script("return document.documentElement.scrollWidth - document.documentElement.clientWidth")
    check("nothing is wider than a narrow window", wide <= 0)

    errors = [entry["message"] for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
    check(f"the console is quiet {errors}", not errors)
    asked = set()
    for entry in browser.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            asked.add(message["params"]["request"]["url"])
    left = {url for url in asked if url != address and not url.startswith("data:")}
    check(f"nothing is asked for {sorted(left)}", not left)
    browser.quit()
    sys.exit(failed)


if __name__ == "__main__":
    main()
