"""Tables that a script writes into a document that people write."""

from pathlib import Path

from pgolf.errors import UserError
from pgolf.files import write_bytes


def fill(document: Path, source: str, text: str) -> None:
    """Replace what stands between `<!-- tables: SOURCE -->` and `<!-- end of tables -->`; UserError without them."""
    begin, end = f"<!-- tables: {source} -->", "<!-- end of tables -->"
    content = document.read_text("utf-8")
    before, found, rest = content.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise UserError(f"{document} lacks the lines {begin} and {end}, between which the tables go.")
    write_bytes(document, f"{before}{begin}\n\n{text}\n\n{end}{after}".encode())
