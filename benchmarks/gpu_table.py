"""The table of gpu.py, and its files: a command goes on from what those before it measured."""

from pathlib import Path
from typing import Any

from pgolf.errors import UserError
from pgolf.files import read_json, write_bytes, write_json
from pgolf.report.tables import markdown_table

RANKS, BATCH = 8, 786_432  # of the published runs
PUBLISHED_STEP = "121 to 123 ms"  # PR 1736 and after, 8 H100s
HEADERS = ["what", "ratio", "ms", "tokens/s", "MFU", "peak GiB", "first call s", "note"]
Row = dict[str, Any]
Block = dict[str, Any]
"""What one part found for one preset: preset, part, settings, seconds, whole (nothing was left out for want of time,
and the part did not fail), rows, failed (a sentence, or None)."""


def key(block: Block) -> tuple[str, str, dict[str, Any]]:
    """What the same block of another command has too."""
    return block["preset"], block["part"], block["settings"]


def measured(block: Block) -> int:
    """How many figures there are."""
    return sum("ms" in row for row in block["rows"])


def kept(folder: Path, facts: dict[str, Any]) -> list[Block]:
    """The blocks that commands before this one wrote into `folder`, on this device with these versions on this day."""
    path = _stem(folder, facts).with_suffix(".json")
    if not path.exists():
        return []
    before = read_json(path)
    told = {name: before["facts"].get(name) for name in facts if name != "ceiling_tflops"}
    if differing := [name for name, value in told.items() if value != facts[name]]:
        raise UserError(f"{path} was measured with another {', '.join(differing)}: choose another --out.")
    blocks: list[Block] = before["blocks"]
    return blocks


def keep(folder: Path, facts: dict[str, Any], blocks: list[Block]) -> None:
    """Write what is known so far, so that a time limit takes the part under way alone."""
    stem = _stem(folder, facts)
    write_json(stem.with_suffix(".json"), {"facts": facts, "blocks": blocks})
    write_bytes(stem.with_suffix(".md"), render(facts, blocks).encode())


def _stem(folder: Path, facts: dict[str, Any]) -> Path:
    return folder / f"gpu-{facts['slug']}-{facts['date']}"


def estimate(rows: list[Row], preset: str) -> str | None:
    """What a step of the published runs would take on 8 such GPUs, from the figures of one; None without them."""
    of = {row["what"]: row for row in rows if "ms" in row}
    best = min((row["ms"] for name, row in of.items() if name.startswith("compiled")), default=None)
    share = of.get(f"Muon, a rank's share of {RANKS}")
    if best is None or share is None:
        return None
    whole = best + share["ms"]
    return (
        f"{preset}: {best:.1f} ms for {BATCH // RANKS:,} tokens and {share['ms']:.1f} ms of Muon, {whole:.1f} ms a "
        f"step of {BATCH:,} tokens on {RANKS} such GPUs if what they send each other is hidden and every step is "
        f"looped (published runs begin at 35 %); published on 8 H100s: {PUBLISHED_STEP}."
    )


def render(facts: dict[str, Any], blocks: list[Block]) -> str:
    """The table as Markdown."""
    ceiling = f", {facts['ceiling_tflops']:.0f} TFLOP/s in a bf16 product of 8192" if facts["ceiling_tflops"] else ""
    versions = f"torch {facts['torch']}, CUDA {facts['cuda']}, triton {facts['triton']}{ceiling}"
    parts = [f"# {facts['device']}, {facts['date']}", versions]
    for preset in dict.fromkeys(one["preset"] for one in blocks):
        mine = [one for one in blocks if one["preset"] == preset]
        rows = [row for one in mine for row in one["rows"]]
        settings = dict.fromkeys(
            ", ".join(f"{name} {value}" for name, value in one["settings"].items()) for one in mine
        )
        parts += [f"## {preset}", "; ".join(settings), markdown_table(HEADERS, [_cells(row) for row in rows])]
        if (sentence := estimate(rows, preset)) is not None:
            parts.append(sentence)
        parts += [f"{preset} {one['part']}: {one['failed']}" for one in mine if one["failed"]]
    return "\n\n".join(parts) + "\n"


def _cells(row: Row) -> list[str]:
    if "ms" not in row:
        return [row["what"], *[""] * (len(HEADERS) - 2), row.get("note", "")]
    speed = f"{row['tokens_per_second']:,.0f}" if "tokens_per_second" in row else ""
    mfu = f"{row['mfu']:.1%}" if "mfu" in row else ""
    peak = f"{row['peak_gib']:.1f}" if row["peak_gib"] else ""
    first = f"{row['first_seconds']:.1f}"
    return [row["what"], f"{row['ratio']:.3f}", f"{row['ms']:.2f}", speed, mfu, peak, first, row["note"]]
