"""One HTML page that opens without a network: images, style and script are inside."""

import base64
import html
from dataclasses import dataclass, field
from pathlib import Path

from pgolf.report.script import SCRIPT
from pgolf.report.sections import Table
from pgolf.report.tables import html_table

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c1c1c; background: #fff;
       max-width: 80rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: 0.2rem; }
h2 { font-size: 1.2rem; margin-top: 2.2rem; border-bottom: 1px solid #ddd; }
h3 { font-size: 1rem; margin: 1.4rem 0 0.4rem; }
p.lead { color: #555; margin-top: 0; }
p.warning { background: #fff4e0; border-left: 4px solid #e69f00; padding: 0.4rem 0.8rem; }
img { max-width: 100%; height: auto; display: block; margin: 0.6rem 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.86rem; }
th, td { border-bottom: 1px solid #e4e4e4; padding: 0.25rem 0.7rem; text-align: left;
         vertical-align: top; }
th { background: #f6f6f6; cursor: pointer; white-space: nowrap; }
th:hover { background: #ececec; }
th[aria-sort=ascending]::after { content: " \\25b2"; font-size: 0.7em; }
th[aria-sort=descending]::after { content: " \\25bc"; font-size: 0.7em; }
tr.unselected td { color: #aaa; }
button { font: inherit; font-size: 0.86rem; margin-right: 0.5rem; }
svg { max-width: 100%; height: auto; display: block; margin: 0.6rem 0; }
svg text { font-family: system-ui, sans-serif; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
""".strip()


SELECT = (
    '<p><button type="button" data-select="all">show all</button>'
    '<button type="button" data-select="none">show none</button>'
    "boxes choose the runs whose curves are drawn; a click on a heading sorts</p>"
)


@dataclass
class Section:
    """A heading with warnings, tables, drawings (a title and SVG text) and images (path and alternative text) below."""

    title: str
    warnings: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    drawings: list[tuple[str, str]] = field(default_factory=list)
    images: list[tuple[Path, str]] = field(default_factory=list)


def render_page(title: str, lead: str, sections: list[Section]) -> str:
    """The whole page; every text is escaped, every image is embedded as base64."""
    body = "\n".join(_section(section) for section in sections)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>\n{STYLE}\n</style>\n</head>\n<body>\n"
        f'<h1>{html.escape(title)}</h1>\n<p class="lead">{html.escape(lead)}</p>\n'
        f"{body}\n<script>\n{SCRIPT}\n</script>\n</body>\n</html>\n"
    )


def _section(section: Section) -> str:
    parts = [f"<h2>{html.escape(section.title)}</h2>"]
    parts += [f'<p class="warning">{html.escape(text)}</p>' for text in section.warnings]
    for table in section.tables:
        parts.append(f"<h3>{html.escape(table.title)}</h3>")
        if table.selectable:
            parts.append(SELECT)
        parts.append(html_table(table.headers, table.rows, table.left, table.selectable))
    for heading, drawing in section.drawings:
        parts += [f"<h3>{html.escape(heading)}</h3>", drawing]
    for path, description in section.images:
        data = base64.b64encode(path.read_bytes()).decode()
        alternative = html.escape(description, quote=True)
        parts.append(f'<img src="data:image/png;base64,{data}" alt="{alternative}">')
    return "\n".join(parts)
