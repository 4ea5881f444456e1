"""What can be wrong with a built site: as files, and in a browser."""

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

SIZES = {"phone": {"width": 390, "height": 844}, "desktop": {"width": 1280, "height": 800}}
SCHEMES = ("light", "dark")
LOOK = """() => {
  const light = colour => { const [r, g, b] = colour.match(/[\\d.]+/g).map(Number); return (0.3 * r + 0.6 * g + 0.1 * b) / 255 };
  const style = getComputedStyle(document.body);
  const scrolls = e => e.tagName != "ARTICLE" && (/auto|scroll/.test(getComputedStyle(e).overflowX) || scrolls(e.parentElement));
  return {
    width: document.documentElement.scrollWidth, room: window.innerWidth,
    cut: [...document.querySelectorAll("article *")].filter(e => e.getBoundingClientRect().right > window.innerWidth + 1)
      .filter(e => !scrolls(e)).map(e => e.outerHTML.slice(0, 60)).slice(0, 3),
    missing: [...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.getAttribute("src").slice(0, 80)),
    paper: light(style.backgroundColor), ink: light(style.color),
    links: [...document.querySelectorAll("a[href]")].map(a => a.href),
    ids: [...document.querySelectorAll("[id]")].map(e => e.id),
    text: document.querySelector("article, .body, main")?.innerText.trim().length ?? 0,
  };
}"""


class Page(HTMLParser):
    """ids, where its links lead, and what it loads."""

    def __init__(self, path):
        super().__init__()
        self.ids, self.links, self.loads = set(), set(), set()
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.ids.update(filter(None, (found.get("id"), found.get("name") if tag == "a" else None)))
        if tag == "a" and found.get("href"):
            self.links.add(found["href"])
        elif tag == "link" and not {"next", "prev", "search", "index"} & set((found.get("rel") or "").split()):
            self.loads.add(found.get("href"))
        elif found.get("src") and not found["src"].startswith("data:"):
            self.loads.add(found["src"])


def read(site):
    """{path within the site: Page} of all its pages."""
    return {path.relative_to(site).as_posix(): Page(path) for path in sorted(Path(site).rglob("*.html"))}


def problems(site, pages, of=None):
    """What does not resolve, one line each. pages: `read(site)`. of: only in these pages (left out: in all)."""
    found = []
    for name, page in pages.items():
        if of and name not in of:
            continue
        for target in page.links | page.loads:
            if urlsplit(target).scheme or target.startswith("//"):
                if target in page.loads:
                    found.append(f"{name}: loads {target}")
                continue
            path, anchor = urldefrag(urljoin(f"/{name}", target))
            path = unquote(path).lstrip("/").split("?")[0]
            if not (Path(site) / path).is_file():
                found.append(f"{name}: {target}: no such file")
            elif anchor and path.endswith(".html") and unquote(anchor) not in pages[path].ids:
                found.append(f"{name}: {target}: no such anchor")
    return found


def elsewhere_in_styles(site):
    """Addresses outside of the site in style sheets."""
    return [f"{path.name}: {address}" for path in Path(site).rglob("*.css")
            for address in re.findall(r"(?:url\(|@import )[\"']?((?:https?:)?//[^\"')\s]+)", path.read_text("utf-8"))]


class Browser:
    """A tab that notes what goes wrong in it. address: where the site is served."""

    def __init__(self, tab, address):
        self.tab, self.address, self.wrong = tab, address, []
        tab.on("pageerror", lambda error: self.wrong.append(f"script error: {error}"))
        tab.on("console", lambda said: said.type == "error" and self.wrong.append(f"console: {said.text}"))
        tab.on("requestfailed", lambda request: "ERR_ABORTED" in (request.failure or "")  # the tab has gone on to the next page
               or self.wrong.append(f"failed: {request.url[:100]}"))
        tab.on("response", lambda answer: answer.status >= 400 and self.wrong.append(f"{answer.status}: {answer.url[:100]}"))
        tab.on("request", lambda request: request.url.startswith(("data:", "blob:", address))
               or self.wrong.append(f"outside of the site: {request.url[:100]}"))

    def visit(self, name, size="phone", scheme="light"):
        """Load a page; returns (what is wrong with it, what `LOOK` has seen)."""
        self.wrong.clear()
        self.tab.set_viewport_size(SIZES[size])
        self.tab.emulate_media(color_scheme=scheme)
        self.tab.goto(f"{self.address}/{name}", wait_until="load")
        seen = self.tab.evaluate(LOOK)
        wrong = [*self.wrong, *(f"missing image: {source}" for source in seen["missing"])]
        if size == "phone" and (seen["width"] > seen["room"] or seen["cut"]):
            wrong.append(f"{seen['width']} wide on a phone of {seen['room']}, beyond it: {seen['cut']}")
        if (seen["paper"] > seen["ink"]) != (scheme == "light"):
            wrong.append(f"{scheme}: paper {seen['paper']:.2f}, ink {seen['ink']:.2f}")
        if not seen["text"]:
            wrong.append("nothing to read")
        return [f"{name}, {size}, {scheme}: {line}" for line in wrong], seen

    def slide(self, name):
        """Move each slider of a page with the keyboard; returns what does not follow."""
        wrong, _ = self.visit(name, "desktop")
        for place, box in enumerate(self.tab.query_selector_all("[id^=sliders-]")):
            for number, slider in enumerate(box.query_selector_all("input[type=range]")):
                def shown(box=box, number=number):
                    return box.query_selector("img").get_attribute("src"), box.query_selector_all("output")[number].inner_text()

                before = shown()
                slider.focus()
                self.tab.keyboard.press("ArrowLeft" if slider.input_value() == slider.get_attribute("max") else "ArrowRight")
                after = shown()
                if before[0] == after[0]:
                    wrong.append(f"{name}: figure {place}, slider {number}: the picture stays")
                if before[1] == after[1]:
                    wrong.append(f"{name}: figure {place}, slider {number}: the value stays")
                if not box.query_selector("img").evaluate("image => image.decode().then(() => image.naturalWidth)"):
                    wrong.append(f"{name}: figure {place}, slider {number}: no picture")
        return wrong
