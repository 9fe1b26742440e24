#!/usr/bin/env python3
"""Holds every link of the guide and of the crate's front page to a file and an anchor that exist: rustdoc checks neither
the anchors of its own links nor the links within pictures. Wants `cargo doc --no-deps --all-features` to have been run."""

import html
import pathlib
import re
import sys
from urllib.parse import unquote, urldefrag

docs = pathlib.Path("target/doc/tower_openrouter")
pages = [docs / "index.html", *sorted((docs / "guide").rglob("*.html"))]
anchors: dict[pathlib.Path, set[str]] = {}
checked, broken = 0, []


def anchors_of(page: pathlib.Path) -> set[str]:
    if page not in anchors:
        anchors[page] = set(re.findall(r'\bid="([^"]+)"', page.read_text()))
    return anchors[page]


for page in pages:
    main = re.search(r"<main>.*</main>", page.read_text(), re.DOTALL).group()
    for link in map(html.unescape, re.findall(r'\bhref="([^"]+)"', main)):
        # docs.rs knows where the pages of other crates are; here there are none
        if re.match(r"https?:|\w+::", link):
            continue
        checked += 1
        path, anchor = map(unquote, urldefrag(link))
        target = (page.parent / path).resolve() if path else page
        if not target.is_file():
            broken.append(f"{page}: {link}: there is no such page")
        elif anchor and target.suffix == ".html" and "/src/" not in target.as_posix() and anchor not in anchors_of(target):
            broken.append(f"{page}: {link}: the page has no such place")

print("\n".join(broken) or f"{checked} links of {len(pages)} pages lead somewhere")
sys.exit(bool(broken) or checked < 300)
