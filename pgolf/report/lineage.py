"""The published records as a tree: what was built on what, and what it brought."""

from collections.abc import Callable, Iterator, Sequence

from pgolf.report.catalogue import Catalogue, Proposal, Record


def render_tree(catalogue: Catalogue, has_preset: Callable[[str], bool]) -> str:
    """One line a record below its parent: bits per byte, the change from the parent's mean, name.

    A `*` marks those with a preset here. The change is left out where the two were measured in different ways. A
    proposal, which nobody has trained, has no figures.
    """
    known = {record.id: record for record in catalogue.records}
    children: dict[str | None, list[Record]] = {}
    for record in sorted(catalogue.records, key=lambda one: -one.mean):
        children.setdefault(record.parent, []).append(record)

    proposed: dict[str, list[Proposal]] = {}
    for proposal in catalogue.proposals:
        proposed.setdefault(proposal.parent, []).append(proposal)

    def lines(record: Record | Proposal, indent: str, branch: str) -> Iterator[str]:
        mark = "*" if has_preset(record.id) else " "
        first = f"{indent + branch + record.id + mark:<35}"
        below = indent + {"": "", "├─ ": "│  ", "└─ ": "   "}[branch]
        if isinstance(record, Proposal):
            yield f"{first} no score           {record.name}"
            yield from descend(proposed.get(record.id, []), below)
            return
        parent = known.get(record.parent or "")
        comparable = parent is not None and parent.metric == record.metric
        change = f"{record.mean - parent.mean:+.5f}" if parent is not None and comparable else ""
        yield f"{first} {record.mean:.5f}  {change:<8}  {record.name}".rstrip()
        yield from descend([*children.get(record.id, []), *proposed.get(record.id, [])], below)

    def descend(descendants: Sequence[Record | Proposal], below: str) -> Iterator[str]:
        for place, child in enumerate(descendants):
            yield from lines(child, below, "└─ " if place == len(descendants) - 1 else "├─ ")

    return "\n".join(line for root in children[None] for line in lines(root, "", ""))
