#!/usr/bin/env python3
"""Makes the pictures of the README from a real run: docs/pictures/report.png and docs/pictures/terminal.svg.

  pip install selenium pillow     (and chromium with chromedriver on the PATH)
  python scripts/make_pictures.py --binary target/release/llama-lite [--run DIR]

Without --run it trains the quickstart in a scratch directory (about three minutes) and keeps what the program printed. With --run DIR, the
directory DIR holds runs/quickstart and console.txt from an earlier call: the pictures are made again without training. The report's
picture is what a headless Chromium shows of the page; the terminal's is drawn from the printed text.
"""

from __future__ import annotations

import argparse
import html
import io
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PICTURES = ROOT / "docs" / "pictures"
LARGEST = 60_000

# One character of the terminal's picture, in pixels.
WIDTH, HEIGHT, MARGIN = 7.8, 17, 16
FONT = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
# Bits of a Braille character by column and row of its dots.
DOTS = [(0, 0, 0x01), (0, 1, 0x02), (0, 2, 0x04), (1, 0, 0x08), (1, 1, 0x10), (1, 2, 0x20), (0, 3, 0x40), (1, 3, 0x80)]


def main() -> None:
    """Trains if need be, then makes both pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=Path, default=ROOT / "target/release/llama-lite")
    parser.add_argument("--run", type=Path)
    args = parser.parse_args()
    binary = args.binary.resolve()
    PICTURES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        home = args.run or Path(scratch)
        if not (home / "console.txt").exists():
            train(binary, home)
        subprocess.run([binary, "report", "runs/quickstart", "--quiet"], cwd=home, check=True)
        save("terminal.svg", draw(excerpt((home / "console.txt").read_text())).encode())
        save("report.png", photograph(home / "runs/quickstart/report.html"))


def train(binary: Path, home: Path) -> None:
    """Runs the quickstart in `home`; all that it prints goes to console.txt."""
    home.mkdir(parents=True, exist_ok=True)
    command = [binary, "pretrain", "--config", ROOT / "configs/quickstart.toml", "--color", "never"]
    with (home / "console.part").open("w") as console:
        subprocess.run(command, cwd=home, stdout=console, stderr=subprocess.STDOUT, check=True)
    (home / "console.part").rename(home / "console.txt")


def save(name: str, data: bytes) -> None:
    """Writes a picture, unless it is too large for a repository."""
    if len(data) > LARGEST:
        sys.exit(f"{name} takes {len(data)} bytes, more than {LARGEST}")
    (PICTURES / name).write_bytes(data)
    print(f"{PICTURES / name}: {len(data)} bytes")


def excerpt(console: str) -> list[str]:
    """The size of the run, some of its validations, and the curve at the end."""
    lines = [line.rstrip() for line in console.splitlines()]
    begins = next(i for i, line in enumerate(lines) if line.startswith("validation loss, "))
    ends = next(i for i in range(begins, len(lines)) if "(step)" in lines[i])
    head = [line for line in lines[:begins] if re.match(r"[\d,]+ parameters|validation floor", line)]
    steps = [line for line in lines if re.match(r"step [\d,]+  val loss", line)]
    few = [line for line in steps if re.match(r"step (0|200|400|1,000|1,600|2,000) ", line)]
    return ["$ llama-lite pretrain --config configs/quickstart.toml", *wrapped(head), *few, "", *lines[begins : ends + 1]]


def wrapped(lines: list[str], width: int = 80) -> list[str]:
    """Long lines as a terminal of that width would show them, broken between words."""
    out = []
    for line in lines:
        while len(line) > width:
            at = line.rfind(" ", 0, width)
            out.append(line[:at])
            line = "  " + line[at + 1 :]
        out.append(line)
    return out


def draw(lines: list[str]) -> str:
    """An SVG of a dark terminal. Braille is drawn as dots, for fonts do not all have it."""
    columns = max(len(line) for line in lines)
    width, height = columns * WIDTH + 2 * MARGIN, len(lines) * HEIGHT + 2 * MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" role="img">',
        "<title>The quickstart in a terminal: validation loss falls to its floor</title>",
        f'<rect width="100%" height="100%" rx="8" fill="#16181d"/><g font-family="{FONT}" font-size="13" fill="#d8dee9">',
    ]
    dots = []
    for row, line in enumerate(lines):
        top = MARGIN + row * HEIGHT
        for match in re.finditer(r"[^\u2800-\u28ff ](?:[^\u2800-\u28ff ]| (?! ))*", line):
            text = match.group().rstrip()
            length = f' textLength="{len(text) * WIDTH:.1f}" lengthAdjust="spacingAndGlyphs"' if len(text) > 1 else ""
            color = ' fill="#8fbcbb"' if row == 0 else ""
            x = MARGIN + match.start() * WIDTH
            parts.append(f'<text x="{x:.1f}" y="{top + 13}"{length}{color} xml:space="preserve">{html.escape(text)}</text>')
        for column, character in enumerate(line):
            bits = ord(character) - 0x2800
            if 0 < bits < 0x100:
                left = MARGIN + column * WIDTH
                dots += [(left + WIDTH * (0.25 + 0.5 * x), top + HEIGHT * (y + 0.5) / 4) for x, y, bit in DOTS if bits & bit]
    path = "".join(f"M{x:.1f} {y:.1f}h.1" for x, y in dots)
    parts.append(f'</g><path d="{path}" stroke="#88c0d0" stroke-width="2.4" stroke-linecap="round"/></svg>\n')
    return "\n".join(parts)


def photograph(page: Path) -> bytes:
    """What a browser shows at the head of a report: its curves, as a PNG of few colours."""
    from PIL import Image
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    for flag in ["--headless=new", "--no-sandbox", "--hide-scrollbars", "--window-size=1180,1100"]:
        options.add_argument(flag)
    # The driver's path is given, or selenium looks for one on the network.
    browser = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        browser.get(page.resolve().as_uri())
        # Two rows of two charts.
        end = browser.execute_script("return document.querySelectorAll('#charts figure')[4].getBoundingClientRect().top")
        picture = Image.open(io.BytesIO(browser.get_screenshot_as_png())).convert("RGB")
    finally:
        browser.quit()
    out = io.BytesIO()
    picture = picture.crop((0, 0, picture.width, min(picture.height, int(end))))
    picture.quantize(48, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    return out.getvalue()


if __name__ == "__main__":
    main()
