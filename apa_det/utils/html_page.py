"""HTML pages without JavaScript or external files: style, tables and images."""

import io
from base64 import b64encode
from collections.abc import Iterable, Sequence
from html import escape

from matplotlib.figure import Figure

from .plotting import DPI

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; margin: 0 auto;
  max-width: 1080px; padding: 2rem 1.5rem 4rem; }
h1 { font-size: 1.7rem; margin: 0 0 .3rem; }
h2 { font-size: 1.3rem; margin: 2.8rem 0 .6rem; border-bottom: 2px solid #eee; }
h3 { font-size: 1.05rem; margin: 2rem 0 .2rem; }
p, figcaption { max-width: 48rem; }
.lead, figcaption, footer, .note { color: #555; }
figcaption, .note { font-size: .92rem; }
figure { margin: 0; }
figure img { max-width: 100%; margin-top: .5rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: .8rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .7rem; text-align: right; white-space: nowrap; vertical-align: top;
  border-bottom: 1px solid #e6e6e6; }
th { font-weight: 600; border-bottom: 2px solid #bbb; }
th:first-child, td:first-child { text-align: left; }
td small { display: block; font-weight: 400; font-size: .78rem; line-height: 1.1; }
tr + tr > th { padding-top: 1.3rem !important; }
.metrics th, .metrics td { padding: .35rem .55rem; }
.best { font-weight: 700; }
.up { color: #00707e; } .down { color: #b8005f; } .same { color: #737373; }
.dot { display: inline-block; width: .75em; height: .75em; border-radius: 50%;
  margin-right: .45em; }
summary { cursor: pointer; font-size: 1.05rem; font-weight: 600; margin-top: 2.4rem; }
footer { margin-top: 3rem; border-top: 1px solid #eee; padding-top: .8rem; font-size: .85rem; }
"""


def document(title: str, body: Iterable[str], footer: str) -> str:
    """Return a page.

    Args:
        title: text.
        body: HTML.
        footer: HTML.
    """
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + f"\n<footer>{footer}</footer>\n</body>\n</html>\n"
    )


def table(columns: Sequence[str], rows: Iterable[str]) -> str:
    """Return a table.

    Args:
        columns: HTML of the header cells.
        rows: HTML of the rows, with their tags; see :func:`cells`.
    """
    head = "".join(f"<th>{column}</th>" for column in columns)
    return f'<div class="scroll"><table><tr>{head}</tr>{"".join(rows)}</table></div>'


def cells(*values: object) -> str:
    """Return a row of a table: text, integers with separators, and numbers as they are."""
    texts = (f"{v:,}" if isinstance(v, int) else str(v) for v in values)
    return f"<tr>{''.join(f'<td>{escape(text)}</td>' for text in texts)}</tr>"


def dot(fill: str) -> str:
    """Return a dot of a color, for legends in text."""
    return f'<span class="dot" style="background:{fill}"></span>'


def image(png: bytes, alt: str) -> str:
    """Return an image that is part of the page."""
    data = b64encode(png).decode()
    return f'<img alt="{escape(alt)}" src="data:image/png;base64,{data}">'


def to_png(figure: Figure) -> bytes:
    """Draw a figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()
