"""HTML pages without external files, readable without JavaScript: style, tables and images."""

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
code { overflow-wrap: anywhere; }
.lead, figcaption, footer, .note { color: #555; }
figcaption, .note { font-size: .92rem; }
figure { margin: 0; }
figure img { max-width: 100%; min-width: 720px; margin-top: .5rem; }
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
.sortable thead { position: sticky; top: 0; background: #fff; }
.sortable { font-size: .88rem; }
.sortable th, .sortable td { padding: .25rem .45rem; }
.sortable td:first-child { white-space: normal; overflow-wrap: anywhere; min-width: 10.5rem; }
.sortable tr + tr > th { padding-top: .25rem !important; }
.sortable :is(th, td):nth-child(-n + 2):not([colspan]) { text-align: left; }
.sortable button { font: inherit; color: inherit; background: none; border: 0; padding: 0;
  cursor: pointer; }
.sortable [aria-sort=ascending] button::after { content: " ▲"; }
.sortable [aria-sort=descending] button::after { content: " ▼"; }
.tall { max-height: 75vh; overflow-y: auto; }
summary { cursor: pointer; font-size: 1.05rem; font-weight: 600; margin-top: 2.4rem; }
footer { margin-top: 3rem; border-top: 1px solid #eee; padding-top: .8rem; font-size: .85rem; }
@media (max-width: 600px) { body { padding: 1rem .8rem 3rem; } th, td { padding: .3rem .45rem; } }
"""
# Makes the column heads of a table buttons. Cells without a number stay at the end.
_SORT = """
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[table.tHead.rows.length - 1].cells], body = table.tBodies[0];
  const order = new Intl.Collator("en", {numeric: true}).compare;
  heads.forEach((head, column) => {
    const text = head.className === "text", button = document.createElement("button");
    const value = row => {
      const cell = row.cells[column].textContent;
      return text ? cell : parseFloat(cell.replaceAll(",", "").replace("−", "-"));
    };
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const next = head.ariaSort ? head.ariaSort === "descending" : text;
      const sign = next ? 1 : -1;
      const rows = [...body.rows].map(row => [value(row), row]);
      rows.sort(([a], [b]) => text ? sign * order(a, b)
        : isNaN(a) - isNaN(b) || (isNaN(a) ? 0 : sign * (a - b)));
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.ariaSort = next ? "ascending" : "descending";
      rows.forEach(([, row]) => body.append(row));
    });
  });
}
"""


def document(title: str, body: Iterable[str], footer: str) -> str:
    """Return a page.

    Args:
        title: text.
        body: HTML.
        footer: HTML.
    """
    body = "\n".join(body)
    script = f"\n<script>{_SORT}</script>" if 'class="sortable"' in body else ""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + body
        + f"\n<footer>{footer}</footer>{script}\n</body>\n</html>\n"
    )


def table(columns: Sequence[str], rows: Iterable[str]) -> str:
    """Return a table.

    Args:
        columns: HTML of the header cells.
        rows: HTML of the rows, with their tags; see :func:`cells`.
    """
    head = "".join(f"<th>{column}</th>" for column in columns)
    return f'<div class="scroll"><table><tr>{head}</tr>{"".join(rows)}</table></div>'


def sortable_table(heads: Iterable[str], rows: Iterable[str]) -> str:
    """Return a long table that is sorted by a click on a column head.

    Without JavaScript it is the same table in the given order.

    Args:
        heads: HTML of the header rows, with their tags. The cells of the last one are the columns;
            those of text have the class "text", the others have numbers or "–".
        rows: HTML of the rows, with their tags.
    """
    return (
        f'<div class="scroll tall"><table class="sortable"><thead>{"".join(heads)}</thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def cells(*values: object) -> str:
    """Return a row of a table: text, integers with separators, and numbers as they are."""
    texts = (f"{v:,}" if isinstance(v, int) else str(v) for v in values)
    return f"<tr>{''.join(f'<td>{escape(text)}</td>' for text in texts)}</tr>"


def dot(fill: str) -> str:
    """Return a dot of a color, for legends in text."""
    return f'<span class="dot" style="background:{fill}"></span>'


def image(data: bytes, alt: str) -> str:
    """Return an image that is part of the page, from the content of a PNG or JPEG file."""
    kind = "jpeg" if data.startswith(b"\xff\xd8") else "png"
    content = f"data:image/{kind};base64,{b64encode(data).decode()}"
    return f'<div class="scroll"><img alt="{escape(alt)}" src="{content}"></div>'


def to_png(figure: Figure) -> bytes:
    """Draw a figure."""
    return _draw(figure, format="png")


def to_jpeg(figure: Figure) -> bytes:
    """Draw a figure that consists of photos: about a tenth of the size of a PNG."""
    return _draw(figure, format="jpeg", pil_kwargs={"quality": 85})


def _draw(figure: Figure, **options) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=DPI, **options)
    return buffer.getvalue()
