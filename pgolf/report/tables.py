"""The same rows as aligned text, as Markdown and as HTML."""

import html
from collections.abc import Sequence

Rows = Sequence[Sequence[str]]


def text_table(headers: Sequence[str], rows: Rows, left: int = 1) -> str:
    """Aligned plain text: the first `left` columns to the left, the others to the right."""
    table = [list(headers), *[list(row) for row in rows]]
    widths = [max(len(row[column]) for row in table) for column in range(len(headers))]
    lines = [
        "  ".join(
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]
    rule = "  ".join("-" * width for width in widths)
    return "\n".join([lines[0], rule, *lines[1:]])


def markdown_table(headers: Sequence[str], rows: Rows, left: int = 1) -> str:
    """A GitHub table; `|` and line ends inside a cell are escaped."""
    marks = [":--" if column < left else "--:" for column in range(len(headers))]

    def line(cells: Sequence[str]) -> str:
        escaped = [cell.replace("|", "\\|").replace("\n", " ") for cell in cells]
        return "| " + " | ".join(escaped) + " |"

    return "\n".join([line(headers), line(marks), *[line(row) for row in rows]])


def html_table(headers: Sequence[str], rows: Rows, left: int = 1, selectable: bool = False) -> str:
    """A table element; every cell is escaped. selectable: a checked box before each row, its value the row's number."""

    def cells(tag: str, row: Sequence[str]) -> str:
        parts = []
        for column, cell in enumerate(row):
            side = "" if column < left else ' class="number"'
            parts.append(f"<{tag}{side}>{html.escape(cell)}</{tag}>")
        return "<tr>" + "".join(parts) + "</tr>"

    def boxed(number: int, row: str) -> str:
        label = html.escape(rows[number][1] if left > 1 else rows[number][0], quote=True)
        box = f'<td><input type="checkbox" class="run" value="{number}" checked aria-label="show {label}"></td>'
        return row.replace("<tr>", f"<tr>{box}", 1)

    lines = [cells("td", row) for row in rows]
    head = cells("th", headers)
    if selectable:
        lines = [boxed(number, line) for number, line in enumerate(lines)]
        head = head.replace("<tr>", "<tr><th>shown</th>", 1)
    body = "".join(lines)
    return f'<div class="scroll"><table><thead>{head}</thead><tbody>{body}</tbody></table></div>'
