"""Pictures of the built site, light and dark, by an installed Chromium: `make screenshots`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
SITE, PICTURES = CHECKOUT / "build" / "site", CHECKOUT / "docs" / "pictures"
NAMES = ("chromium", "chromium-browser", "google-chrome")
PAGE, SIZE, MAX_BYTES = "index.html", (1280, 900), 120_000
# The value of Blink's setting for the preference of the reader.
SCHEMES = {"light": "1", "dark": "0"}


class _QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name of the base class
        """Logs nothing."""


def find_browser() -> str:
    """Returns the executable of a Chromium; exits with a message if there is none."""
    browser = os.environ.get("FORECASTER_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if browser is None:
        raise SystemExit(
            f"Expected {', '.join(NAMES)} on the PATH, or FORECASTER_CHROMIUM; found none. Install Chromium."
        )
    return browser


def take_screenshots(site: Path, pictures: Path, *, browser: str) -> list[Path]:
    """Writes `site-light.png` and `site-dark.png`, with a palette of 200 colours; returns their paths."""
    from PIL import Image

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_QuietHandler, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    paths = []
    try:
        for scheme, preference in SCHEMES.items():
            path = pictures / f"site-{scheme}.png"
            with tempfile.TemporaryDirectory() as profile:
                command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
                command += [f"--user-data-dir={profile}", f"--screenshot={path}", f"--window-size={SIZE[0]},{SIZE[1]}"]
                command += ["--virtual-time-budget=5000", f"--blink-settings=preferredColorScheme={preference}"]
                address = f"http://127.0.0.1:{server.server_address[1]}/{PAGE}"
                subprocess.run([*command, address], check=True, capture_output=True, timeout=120)
            with Image.open(path) as picture:
                small = picture.convert("RGB").quantize(200)
            small.save(path, optimize=True)
            paths.append(path)
    finally:
        server.shutdown()
        server.server_close()
    return paths


def main() -> int:
    """Takes the pictures; returns 1 if the site is not built, or a picture is too large."""
    if not (SITE / PAGE).is_file():
        print(f"Expected the site in {SITE}; found none. Run make docs.")
        return 1
    paths = take_screenshots(SITE, PICTURES, browser=find_browser())
    for path in paths:
        print(f"{path}: {path.stat().st_size} bytes")
    return int(any(path.stat().st_size > MAX_BYTES for path in paths))


if __name__ == "__main__":
    sys.exit(main())
