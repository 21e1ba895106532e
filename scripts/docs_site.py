"""Hooks of mkdocs.yml: pages from outside of docs/, and the API reference.

The site gets README.md, MODEL_ZOO.md and CHANGELOG.md of the project, and a page for each package
in ``PACKAGES`` that renders the docstrings of what its ``__init__.py`` exports.
"""

import ast
import os
import re
from pathlib import Path

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
PAGES = {"README.md": "overview.md"} | {
    name: name for name in ("CHANGELOG.md", "CONTRIBUTING.md", "MODEL_ZOO.md")
}
PACKAGES = (
    "apa_det",
    "apa_det.layers",
    "apa_det.injection",
    "apa_det.modeling",
    "apa_det.modeling.losses",
    "apa_det.data",
    "apa_det.data.sampling",
    "apa_det.checkpoint",
    "apa_det.engine",
    "apa_det.engine.jobs",
    "apa_det.evaluation",
    "apa_det.analysis",
    "apa_det.export",
    "apa_det.experiments",
)
LINK = re.compile(r"\[([^\]]+)\]\(([^)#\s]*)(#[^)\s]*)?\)")


# Code in tables breaks after dots and underscores only, so that its columns stay readable
STYLE = ".md-grid { max-width: 72rem }\n.md-typeset td code { word-break: normal }\n"


def on_config(config):
    config.nav.append({"API reference": [f"api/{package}.md" for package in PACKAGES]})
    config.extra_css.append("site.css")


def on_files(files, config):
    for source, name in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, name, content=_links(text, ROOT, Path())))
    for package in PACKAGES:
        files.append(File.generated(config, f"api/{package}.md", content=_reference(package)))
    files.append(File.generated(config, "site.css", content=STYLE))
    return files


def on_page_markdown(markdown, page, config, files):
    if page.file.generated_by:
        return markdown
    return _links(markdown, Path(config.docs_dir), Path(page.file.src_uri).parent)


def on_page_content(html, page, config, files):
    html = re.sub(r":(?:attr|class|data|exc|func|meth|mod):(?=<code)", "", html)
    return re.sub(r"(?<=<td>).*?(?=</td>)", _breakable, html, flags=re.S)


def _breakable(cell: re.Match) -> str:
    """Let the code in a table cell break after dots, slashes and underscores."""
    return re.sub(
        r"(?<=<code>)[^<]+(?=</code>)",
        lambda code: re.sub(r"(?<=[\w*])([./_])(?=[A-Za-z])", r"\1<wbr>", code[0]),
        cell[0],
    )


def _links(markdown: str, folder: Path, page_folder: Path) -> str:
    """Point links at the pages of the site; links to other files of the project become text."""

    def replace(match: re.Match) -> str:
        text, target, anchor = match[1], match[2], match[3] or ""
        if not target or "://" in target:
            return match[0]
        path = (folder / target).resolve()
        if not path.exists():
            raise PluginError(f"{target} does not exist; it is linked as {text!r} in {folder}.")
        inside = path.relative_to(ROOT)
        page = PAGES.get(str(inside))
        if page is None and inside.parts[0] == "docs" and inside.suffix in (".md", ".png"):
            page = str(inside.relative_to("docs"))
        if page is None:
            return text
        return f"[{text}]({os.path.relpath(page, page_folder)}{anchor})"

    return LINK.sub(replace, markdown)


def _reference(package: str) -> str:
    """Return the page of a package: its docstring, and what its ``__init__.py`` imports."""
    parts = package.split(".")
    tree = ast.parse((ROOT.joinpath(*parts) / "__init__.py").read_text(encoding="utf-8"))
    lines = [f"# {package}", "", ast.get_docstring(tree) or "", ""]
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module and node.level:
            origin = ".".join([*parts[: len(parts) - node.level + 1], node.module])
            for name in node.names:
                if name.asname is None and not name.name.startswith("_"):
                    lines += [f"::: {origin}.{name.name}", ""]
    return "\n".join(lines)
