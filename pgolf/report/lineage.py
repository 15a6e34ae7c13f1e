"""The published records as a tree: what was built on what, and what it brought."""

from collections.abc import Callable, Iterator

from pgolf.report.records import Catalogue, Record


def render_tree(catalogue: Catalogue, has_preset: Callable[[str], bool]) -> str:
    """One line a record below its parent: bits per byte, the change from the parent's mean, name.

    A `*` marks those with a preset here. The change is left out where the two were measured in different ways.
    """
    known = {record.id: record for record in catalogue.records}
    children: dict[str | None, list[Record]] = {}
    for record in sorted(catalogue.records, key=lambda one: -one.mean):
        children.setdefault(record.parent, []).append(record)

    def lines(record: Record, indent: str, branch: str) -> Iterator[str]:
        parent = known.get(record.parent or "")
        comparable = parent is not None and parent.metric == record.metric
        change = f"{record.mean - parent.mean:+.5f}" if parent is not None and comparable else ""
        mark = "*" if has_preset(record.id) else " "
        yield f"{indent + branch + record.id + mark:<35} {record.mean:.5f}  {change:<8}  {record.name}".rstrip()
        below = indent + {"": "", "├─ ": "│  ", "└─ ": "   "}[branch]
        descendants = children.get(record.id, [])
        for place, child in enumerate(descendants):
            yield from lines(child, below, "└─ " if place == len(descendants) - 1 else "├─ ")

    return "\n".join(line for root in children[None] for line in lines(root, "", ""))
