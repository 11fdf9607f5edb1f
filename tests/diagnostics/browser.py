"""A real browser without a window: what a page has become, and how it looks."""

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
VOID = {"meta", "br", "img", "input", "link", "hr"}


def browse(page: Path, *options: str, address: str = "") -> str:
    """Opens a page of the disk; what the browser writes to its standard output."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip("there is no Chromium on the PATH")
    command = [
        *(program, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
        # Nothing of it may come from a network: names lead nowhere.
        *("--host-resolver-rules=MAP * ~NOTFOUND", "--no-first-run", "--disable-extensions"),
        *("--disable-background-networking", f"--user-data-dir={page.parent / 'profile'}"),
        *options,
        page.resolve().as_uri() + address,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def screenshot(page: Path, width: int, height: int, address: str = "") -> np.ndarray:
    """The window as bytes (height, width, 3)."""
    from matplotlib.image import imread

    picture = page.with_suffix(".screenshot.png")
    browse(page, f"--window-size={width},{height}", f"--screenshot={picture}", address=address)
    return (imread(picture)[..., :3] * 255).round().astype(np.uint8)


def hangul_is_installed() -> bool:
    if shutil.which("fc-list") is None:
        return False
    found = subprocess.run(["fc-list", ":lang=ko"], capture_output=True, text=True)
    return bool(found.stdout.strip())


class Node:
    """An element of a page: its name, attributes, and what it holds."""

    def __init__(self, tag: str, attributes: dict[str, str | None]) -> None:
        self.tag, self.attributes = tag, attributes
        self.children: list[Node | str] = []

    @property
    def text(self) -> str:
        return "".join(one if isinstance(one, str) else one.text for one in self.children)

    def find(self, path: str) -> list["Node"]:
        """Elements under this one by names and ids, as in "table#layers tbody td"."""
        found = [self]
        for step in path.split():
            inner = [one for node in found for one in node.elements() if one.fits(step)]
            found = list(dict.fromkeys(inner))
        return found

    def fits(self, step: str) -> bool:
        tag, _, id = step.partition("#")
        return tag in ("", self.tag) and id in ("", self.attributes.get("id"))

    def elements(self) -> list["Node"]:
        inner = [one for one in self.children if isinstance(one, Node)]
        return [one for node in inner for one in (node, *node.elements())]


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open = [Node("", {})]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        node = Node(tag, dict(attrs))
        self.open[-1].children.append(node)
        if tag not in VOID:
            self.open.append(node)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)


def read(page: str) -> Node:
    """A page that a browser wrote, in which every element is closed."""
    reader = _Reader()
    reader.feed(re.sub("^<!DOCTYPE[^>]*>", "", page, flags=re.IGNORECASE))
    reader.close()
    return reader.open[0]
