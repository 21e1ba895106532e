"""The page of an advice, with its picture."""

import os
import time
from collections.abc import Iterator
from html import escape
from pathlib import Path

import numpy as np

from ...utils.atomic_files import open_atomic, writing
from ...utils.html_page import cells, document, dot, image, table, to_png
from ...utils.plotting import group_color
from ..frequency import FREQUENCY_LABELS
from .advice_figure import draw_advice
from .recommendation import CHOICE_COLUMNS, Advice

_MOST_CLASSES = 15  # of a table


def write_advice(advice: Advice, folder: str | os.PathLike) -> Path:
    """Write the self-contained page ``advice.html`` and its picture ``dataset.png``.

    Args:
        advice: the advice.
        folder: created if missing. Existing files of these names are replaced.

    Returns:
        The path of the page.

    Raises:
        UserError: a file cannot be written.
    """
    folder, picture = Path(folder), to_png(draw_advice(advice))
    page = folder / "advice.html"
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with open_atomic(folder / "dataset.png", "wb") as file:
            file.write(picture)
        with open_atomic(page) as file:
            file.write(_page(advice, picture))
    return page


def _page(advice: Advice, picture: bytes) -> str:
    name = os.path.basename(advice.json_file)
    caption = (
        "Top: the classes by their number of images; dotted: 10 and 100 images. Bottom left: of "
        "each frequency group, the distribution of the box sizes. Bottom right: crowding."
    )
    body = [
        f"<h1>Advice for {escape(name)}</h1>",
        f'<p class="lead">Recommended: {escape(advice.recipe)}.</p>',
        *_settings(advice),
        *(f"<p>{escape(note)}</p>" for note in advice.notes),
        *_ideas(advice),
        "<h2>The dataset</h2>",
        table(("quantity", "value"), (cells(*fact) for fact in advice.facts())),
        f"<figure><figcaption>{caption}</figcaption>{image(picture, 'Four panels')}</figure>",
        *_epochs(advice),
        "<h2>Classes</h2>",
        *_classes(advice),
    ]
    date = time.strftime("%Y-%m-%d at %H:%M")
    footer = f"Made by apa_det on {date}. In the same folder: the picture, dataset.png."
    return document(f"Advice for {name}", body, footer)


def _settings(advice: Advice) -> Iterator[str]:
    if advice.settings:
        rows = [cells(s.key, s.value, s.reason) for s in advice.settings]
        yield table(("config key", "value", "reason"), rows)
        yield (
            '<p class="note">--write-config writes them into a config, with the schedule and the '
            "evaluation.</p>"
        )


def _ideas(advice: Advice) -> Iterator[str]:
    if advice.ideas:
        yield "<h2>Also worth a try</h2><p>One at a time, against the recommended recipe:</p>"
        items = (f"<li><code>{escape(k)}</code>: {escape(why)}</li>" for k, why in advice.ideas)
        yield f"<ul>{''.join(items)}</ul>"


def _epochs(advice: Advice) -> Iterator[str]:
    if not advice.choices:
        return
    yield "<h2>What an epoch would show</h2>"
    yield (
        "<p>As expected, over the images with annotations. The imbalance is the number of images "
        "of the most frequent class over that of the least seen one.</p>"
    )
    columns = [column.replace("\n", " ") for column in CHOICE_COLUMNS]
    yield table(columns, (cells(*row) for row in advice.choice_rows()))
    for choice in advice.choices:
        if choice.fault:
            yield f'<p class="note">{escape(choice.fault)}</p>'


def _classes(advice: Advice) -> Iterator[str]:
    statistics = advice.statistics
    counts, instances = statistics.image_counts, statistics.counts.instance_count
    order = np.argsort(-counts, kind="stable").tolist()
    parts = [("All classes", order)]
    if len(order) > 2 * _MOST_CLASSES:
        parts = [
            (f"The {_MOST_CLASSES} most frequent", order[:_MOST_CLASSES]),
            (f"The {_MOST_CLASSES} rarest", order[-_MOST_CLASSES:]),
        ]
    colors = {group: group_color(i) for i, group in enumerate(FREQUENCY_LABELS)}
    for title, chosen in parts:
        rows = []
        for i in chosen:
            mark = dot(colors[statistics.groups[i]])
            row = cells(statistics.names[i], int(counts[i]), int(instances[i]))
            rows.append(row.replace("<td>", f"<td>{mark}", 1))
        yield f"<h3>{title}</h3>" + table(("class", "images", "instances"), rows)
    marks = ", ".join(f"{dot(colors[g])}{label}" for g, label in FREQUENCY_LABELS.items())
    yield f'<p class="note">{marks}</p>'
