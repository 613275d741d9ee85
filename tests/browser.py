"""Find a Chromium for the end-to-end tests; `python -m tests.browser` installs one where there is none.

Order: the environment variable CHROMIUM, a browser on PATH, Playwright's own. Only the command line installs
(`make test` calls it), so that running pytest by hand never changes the machine.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find() -> str | None:
    """Return the path of a browser that is here already, or None."""
    for name in (os.environ.get("CHROMIUM", ""), *NAMES):
        if name and (path := shutil.which(name)):
            return path
    from playwright.sync_api import (
        sync_playwright,
    )  # starts a process, so only when nothing simpler was found

    with sync_playwright() as playwright:
        path = playwright.chromium.executable_path
    return path if Path(path).exists() else None


def install() -> None:
    """Install Chromium: by apt where we may, which brings its libraries too, else Playwright's own build."""
    if os.geteuid() == 0 and Path("/etc/debian_version").exists():
        packages = ("chromium", "fonts-liberation")
        if _apt("update", "-qq") and _apt("install", "-qq", "--yes", "--no-install-recommends", *packages):
            return
    command = [sys.executable, "-m", "playwright", "install", "chromium"]
    if os.geteuid() == 0:
        command.append("--with-deps")
    subprocess.run(command, check=True)


def _apt(*arguments: str) -> bool:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    return subprocess.run(["apt-get", *arguments], env=environment, check=False).returncode == 0


def main() -> int:
    """Make sure there is a browser; say what was done only if something was."""
    if find():
        return 0
    sys.stderr.write("No browser for the end-to-end tests found: installing Chromium.\n")
    install()
    if find():
        return 0
    sys.stderr.write("Still no browser. Install Chromium, or set CHROMIUM to its path.\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
