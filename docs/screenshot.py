"""Take the picture of a report that README and docs show: `make picture`, or `python docs/screenshot.py [report.html]`.

Without an argument the sweep below is run first, as `mteb-vllm -m` runs it. A Chromium on the path, or named by
MTEB_VLLM_CHROMIUM, takes the picture.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

PICTURE = Path(__file__).resolve().parent / "images" / "report.png"
# mteb-vllm -m engine.max_model_len=64,256 'prompts.query="","query: "'
SWEEP = ["engine.max_model_len=64,256", 'prompts.query="","query: "']
MOST_BYTES = 200_000
WIDTH, HEIGHT = 1280, 1000


def run_sweep() -> Path:
    """Run the sweep, and return its page."""
    from mteb_vllm import run

    records = run(SWEEP, multirun=True)
    assert isinstance(records, list)
    return Path(records[0].output_dir).parent / "report.html"  # type: ignore[union-attr]


def take(page_file: Path) -> None:
    """Take the picture of the top of a page."""
    names = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
    found = os.environ.get("MTEB_VLLM_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=["--headless", "--no-sandbox", "--disable-gpu"])
        context = browser.new_context(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
        page = context.new_page()
        page.goto(page_file.resolve().as_uri())
        page.wait_for_selector("html[data-ready]", state="attached", timeout=60_000)
        PICTURE.parent.mkdir(exist_ok=True)
        page.screenshot(path=PICTURE)
        browser.close()


def main() -> int:
    """Take the picture, and make sure that it is small."""
    take(Path(sys.argv[1]) if len(sys.argv) > 1 else run_sweep())
    size = PICTURE.stat().st_size
    print(f"{PICTURE}: {size:,} bytes")
    if size > MOST_BYTES:
        print(f"more than {MOST_BYTES:,} bytes: make it smaller", file=sys.stderr)
    return int(size > MOST_BYTES)


if __name__ == "__main__":
    sys.exit(main())
