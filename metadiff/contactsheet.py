"""Classified pictures as a page of its own: one section a class, the most certain first, wrong ones marked."""

from __future__ import annotations

import base64
import io
from html import escape
from pathlib import Path
from string import Template

from PIL import Image

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
    lines = "".join(f"<li>{escape(line)}" for line in told(report.skipped))
    skipped = f"<h2>Left out</h2><ul>{lines}</ul>" if lines else ""
    return PAGE.substitute(title=escape(title), about=escape(about(report.lineage)), sections=sections, skipped=skipped)


def section(report: Report, label: str, query: Path) -> str:
    found = sorted((a for a in report.answers if a.prediction == label), key=lambda answer: -answer.confidence)
    figures = "".join(figure(answer, query) for answer in found)
    learnt = f"{len(found)} predicted, learnt from {report.support[label]}"
    return f'<h2>{escape(label)} <span>{learnt}</span></h2><div class="sheet">{figures}</div>'


def figure(answer: Answer, query: Path) -> str:
    style, truth = (' class="wrong"', f"<br><b>is {escape(str(answer.truth))}</b>") if answer.wrong else ("", "")
    name = escape(answer.name)
    return (
        f'<figure{style}><img alt="{name}" src="{thumbnail(answer.file, query)}">'
        f'<meter value="{answer.confidence:.4f}"></meter><figcaption>{answer.confidence:.0%} {name}{truth}</figcaption></figure>'
    )


def thumbnail(file: Path, root: Path) -> str:
    stream = io.BytesIO()
    Image.fromarray(decode_file(file, root=root, image_size=SIDE, color="rgb")).save(stream, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()
