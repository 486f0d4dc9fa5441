"""The HTML report in a real browser: offline, light and dark, wide and narrow, accessible."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from trimtab.hardware import provenance
from trimtab.reproduce.outcome import SystemOutcome
from trimtab.reproduce.report import Report
from trimtab.reproduce.runner import run_isolated

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")

# Runs inside the page: what a reader with other eyes, screens or no network would trip over.
CHECKS = """
const luminance = (color) => {
  const [r, g, b] = color.match(/[\\d.]+/g).slice(0, 3).map((c) => c / 255)
    .map((c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const background = (view, element) => {
  for (let at = element; at; at = at.parentElement) {
    const color = view.getComputedStyle(at).backgroundColor;
    if (!/, 0\\)$|transparent/.test(color)) return color;
  }
  return "rgb(255, 255, 255)";
};
const examine = (view) => {
  const page = view.document;
  page.querySelectorAll("details").forEach((details) => (details.open = true));
  let contrast = 99, faint = "";
  for (const element of page.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || ["SCRIPT", "STYLE"].includes(element.tagName)) continue;
    const style = view.getComputedStyle(element);
    const svg = element.namespaceURI.endsWith("svg");
    const color = svg ? style.fill : style.color;
    const [a, b] = [luminance(color), luminance(background(view, element))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < contrast) [contrast, faint] = [ratio, element.textContent.trim().slice(0, 40)];
  }
  const ids = [...page.querySelectorAll("[id]")].map((element) => element.id);
  return {
    width: view.innerWidth,
    overflow: page.documentElement.scrollWidth - page.documentElement.clientWidth,
    wide: [...page.querySelectorAll("body *")].filter(
      (element) => element.getBoundingClientRect().right > view.innerWidth + 1
        && !element.closest(".scroll, pre")).map(
      (element) => `${element.tagName} ${element.className} ${element.textContent.slice(0, 30)}`),
    paper: view.getComputedStyle(page.body).backgroundColor,
    contrast, faint,
    repeated: ids.filter((id, at) => ids.indexOf(id) !== at),
    unseen: [...page.images].filter((i) => !i.complete || !i.naturalWidth || !i.alt).length,
    unnamed: [...page.querySelectorAll(".plot svg")].filter(
      (svg) => svg.getAttribute("role") !== "img" || !svg.getAttribute("aria-label")).length,
    requests: view.performance.getEntriesByType("resource").filter(
      (entry) => !entry.name.startsWith("data:")).map((entry) => entry.name),
    headings: [...page.querySelectorAll("h1, h2, h3")].map((h) => h.tagName).join(" "),
    scopes: [...page.querySelectorAll("main > section > table th")].every((h) => h.scope),
    button: page.getElementById("theme").textContent,
  };
};
"""


@pytest.fixture
def report(fake_systems):
    names = ("fnet", "vrgd", "sparamx")
    outcomes = [run_isolated(name) for name in names]
    outcomes.append(SystemOutcome("katago", "unavailable", error="Not part of this version yet."))
    return Report(provenance(), outcomes, seed=0, full=False, date="2026-01-02T03:04:05Z")


class Page(HTMLParser):
    """The tags of a page; raises where they do not nest."""

    VOID = frozenset("meta link img br hr input".split())

    def __init__(self, text):
        super().__init__()
        self.open, self.references, self.text = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.references += [
            (tag, name, value) for name, value in attrs if name in ("src", "href", "action")
        ]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.text.append(data)


def test_the_page_needs_nothing_beside_itself(report):
    text = report.to_html()
    page = Page(text)
    assert all(value.startswith(("#", "data:")) for _, _, value in page.references)
    style = re.search(r"<style>(.*?)</style>", text, re.S)
    assert style
    assert "url(" not in style[1]
    assert "@import" not in style[1]


def test_the_page_tells_all_that_was_found(report):
    text = " ".join(" ".join(Page(report.to_html()).text).split())
    for words in (
        "systems measured 1 of 4",
        "training step, length 512",
        "batch 8, float32 <compiled>. Seed 0.",
        "Trains faster than <BERT> & keeps its accuracy.",
        "2.00x",
        "does not hold",
        "On a simulated mesh of 8 devices.",
        "Failed to run. ValueError: shapes (3, 4) and (5,) do not match [oops]",
        "last words",
        "Two layers.",
        "Not part of this version yet.",
        report.machine["summary"],
    ):
        assert words in text, words
    assert "Twelve layers." not in text


def test_an_empty_report_is_still_a_page():
    empty = Report(provenance(), [], seed=0, full=True, date="2026-01-02T03:04:05Z")
    assert "0 of 0" in empty.to_html()
    assert empty.failed is False


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine to look at the page with")
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_page_reads_well_in_a_browser(report, theme, tmp_path):
    report.write(tmp_path)
    widths = (360, 768, 960, 1280)
    frames = "".join(
        f'<iframe src="report.html" width="{width}" height="900"></iframe>' for width in widths
    )
    # The frames inherit the preferred theme; their sizes stand for phone, tablet and desk.
    (tmp_path / "look.html").write_text(
        f"<!doctype html><meta charset=utf-8><script>{CHECKS}\n"
        "onload = () => { document.body.textContent = JSON.stringify("
        "[...frames].map(examine)); };</script>"
        f"<body>{frames}</body>".replace("[...frames]", "Array.from(window)")
    )
    done = subprocess.run(
        [
            str(BROWSER),
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--allow-file-access-from-files",
            f"--user-data-dir={tmp_path / 'profile'}",
            f"--blink-settings=preferredColorScheme={0 if theme == 'dark' else 1}",
            "--virtual-time-budget=3000",
            "--dump-dom",
            (tmp_path / "look.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    body = re.search(r"<body>(\[.*\])</body>", done.stdout, re.S)
    assert body, done.stdout[-2000:] + done.stderr[-2000:]
    looks = json.loads(body[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    assert [look["width"] for look in looks] == list(widths)
    for look in looks:
        assert look["overflow"] <= 0, look["wide"][:5]
        assert look["contrast"] >= 4.5, look["faint"]
        assert look["repeated"] == []
        assert look["unseen"] == look["unnamed"] == 0
        assert look["requests"] == []
        assert look["headings"] == "H1 H2 H2 H2 H2"
        assert look["scopes"]
    dark = sum(map(int, re.findall(r"\d+", looks[0]["paper"])[:3])) < 200
    assert dark == (theme == "dark")
    assert looks[0]["button"] == ("Light theme" if dark else "Dark theme")
