"""Tables of words and numbers for the verbs that print them."""

from rich.table import Table
from rich.text import Text


def text_table(title: str, columns: list[str], rows: list[list[str]]) -> Table:
    """A table whose columns of numbers stand at the right."""
    table = Table(title=Text(title))
    for index, column in enumerate(columns):
        numbers = _are_numbers([row[index] for row in rows])
        table.add_column(column, justify="right" if numbers else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def _are_numbers(cells: list[str]) -> bool:
    """Whether all cells that say something are numbers."""
    said = [cell for cell in cells if cell not in ("", "-")]
    return bool(said) and all(cell.replace(",", "").replace(".", "").rstrip("%").isdigit() for cell in said)
