"""Pictures as a page of its own: classified ones with a section a class, the most certain first, wrong ones marked; or those
that a sentence was asked of, the likeliest first.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from html import escape
from pathlib import Path
from string import Template

from PIL import Image

from metadiff import ask
from metadiff.classification import Answer, Report, about, told
from metadiff.images.decode import decode_file

SIDE = 96  # of a thumbnail, in pixels
PAGE = Template("""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>$title</title>
<style>
:root { color-scheme: light dark; --ink: #222; --soft: #667085; --paper: #fff; --card: #f4f5f7; --bar: #2563eb; --bad: #dc2626 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #ddd; --soft: #98a2b3; --paper: #181818; --card: #242424; --bar: #60a5fa; --bad: #f87171 }
}
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem }
body { color: var(--ink); background: var(--paper) }
h1 { font-size: 1.4rem; margin-bottom: .2rem } h2 { font-size: 1.1rem; margin: 2rem 0 .6rem }
p, h2 span, figcaption { color: var(--soft) } h2 span { font-weight: 400; font-size: .9rem }
.sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(7rem, 1fr)); gap: .7rem }
figure { margin: 0; padding: .5rem; background: var(--card); border-radius: .5rem; border: 2px solid transparent }
figure.wrong { border-color: var(--bad) } .wrong b { color: var(--bad) }
img { width: 100%; display: block; border-radius: .25rem; background: #fff }
figcaption { font-size: .75rem; line-height: 1.4; margin-top: .35rem; overflow-wrap: anywhere }
meter { width: 100%; height: .4rem; margin-top: .35rem; display: block }
meter::-webkit-meter-bar { background: transparent; border: 0; height: .3rem }
meter::-webkit-meter-optimum-value { background: var(--bar); border-radius: .2rem }
meter::-moz-meter-bar { background: var(--bar) }
</style>
<h1>$title</h1>
<p>$about</p>
$sections
$skipped
</html>
""")


def page(report: Report, query: Path) -> str:
    """One file that needs no other."""
    title = f"{len(report.answers)} pictures, {len(report.support)} classes"
    if report.accuracy:
        title += ", {} of {} right".format(*report.accuracy)
    sections = "".join(section(report, label, query) for label in report.support)
    return PAGE.substitute(
        title=escape(title), about=escape(about(report.lineage)), sections=sections, skipped=left_out(report.skipped)
    )


def asked_page(sheet: ask.Sheet, images: Path) -> str:
    """Likewise, of a sentence: those of which it is probably true, then the others."""
    title = f"“{sheet.sentence}”"
    sections = ""
    for answer in ("yes", "no"):
        found = sheet.of(answer)
        figures = "".join(card(score.file, images, score.name, score.value) for score in found)
        sections += f"<h2>{answer.capitalize()} <span>{len(found)} of {len(sheet.scores)}</span></h2>{in_sheet(figures)}"
    return PAGE.substitute(
        title=escape(title), about=escape(ask.about(sheet.lineage)), sections=sections, skipped=left_out(sheet.skipped)
    )


def left_out(skipped: Mapping[str, str]) -> str:
    lines = "".join(f"<li>{escape(line)}" for line in told(skipped))
    return f"<h2>Left out</h2><ul>{lines}</ul>" if lines else ""


def in_sheet(figures: str) -> str:
    return f'<div class="sheet">{figures}</div>'


def section(report: Report, label: str, query: Path) -> str:
    found = sorted((a for a in report.answers if a.prediction == label), key=lambda answer: -answer.confidence)
    figures = "".join(figure(answer, query) for answer in found)
    learnt = f"{len(found)} predicted, learnt from {report.support[label]}"
    return f"<h2>{escape(label)} <span>{learnt}</span></h2>{in_sheet(figures)}"


def figure(answer: Answer, query: Path) -> str:
    return card(answer.file, query, answer.name, answer.confidence, truth=answer.truth if answer.wrong else None)


def card(file: Path, root: Path, name: str, share: float, *, truth: str | None = None) -> str:
    style, said = ("", "") if truth is None else (' class="wrong"', f"<br><b>is {escape(truth)}</b>")
    name = escape(name)
    return (
        f'<figure{style}><img alt="{name}" src="{thumbnail(file, root)}">'
        f'<meter value="{share:.4f}"></meter><figcaption>{share:.0%} {name}{said}</figcaption></figure>'
    )


def thumbnail(file: Path, root: Path) -> str:
    stream = io.BytesIO()
    Image.fromarray(decode_file(file, root=root, image_size=SIDE, color="rgb")).save(stream, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()
