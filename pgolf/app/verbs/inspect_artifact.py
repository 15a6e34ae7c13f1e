"""`pgolf inspect artifact=FILE`: where the bytes of an artifact are, and how near its coder came to the entropy."""

from pathlib import Path
from typing import Any

from pgolf.app.console import Screen
from pgolf.app.verbs.tables import text_table
from pgolf.errors import ConfigError, UserError

FIGURES = ["elements", "bytes", "share", "bits a weight", "symbols in", "over order 0", "over adaptive"]
LEGEND = """\
symbols in: bytes of the coded symbols, without steps and other side information. over order 0: those bytes over the
entropy of a tensor's symbols as independent and alike. over adaptive: over what they cost when the spread of every
column is learned from the rows above, and rows that repeat others are known. Tensors that share a stream share its
bytes in proportion to these."""


def show(artifact: str, others: list[str], plot: str | None) -> int:
    """Print the account of an artifact file, or of that in a run directory; gives the exit status."""
    if others:
        raise ConfigError([f"{word}: artifact=FILE describes itself and takes no overrides" for word in others])
    path = Path(artifact).expanduser()
    path = path / "artifact.pgolf" if path.is_dir() else path
    if not path.is_file():
        raise UserError(f"artifact={artifact}: there is no such file. Give an artifact.pgolf, or its run directory.")
    from pgolf.quant.account import account

    found = account(path)
    screen = Screen()
    screen.tables(tables(found))
    screen.say(LEGEND)
    if plot is not None:
        from pgolf.report.artifact import draw

        target = Path(plot or f"artifact-{path.resolve().parent.name}.png")
        target.parent.mkdir(parents=True, exist_ok=True)
        screen.say(f"drawn in {draw(found, target)}")
    return 0


def tables(found: dict[str, Any]) -> list[Any]:
    """By tensor, and by class with the sum."""
    from pgolf.quant.account import total

    whole = found["total_bytes"]
    title = f"{found['path']}: {whole:,} bytes, coder {found['coder']}"
    sums = total(found["classes"])
    header = ["(header)", "", "", "", f"{found['header_bytes']:,}", _share(found["header_bytes"], whole), *["-"] * 4]
    by_class = [[row["role"], str(row["tensors"]), row["scheme"], *_figures(row, whole)] for row in found["classes"]]
    tensors = f"{len(found['tensors'])}"
    everything = _figures({**sums, "bytes": whole, "bits_per_weight": 8 * whole / max(1, sums["elements"])}, whole)
    return [
        text_table(
            "Tensors",
            ["tensor", "role", "scheme", *FIGURES],
            [[row["tensor"], row["role"], row["scheme"], *_figures(row, whole)] for row in found["tensors"]],
        ),
        text_table(
            title,
            ["class", "tensors", "scheme", *FIGURES],
            [*by_class, header, ["all", tensors, "", *everything]],
        ),
    ]


def _figures(row: dict[str, Any], whole: int) -> list[str]:
    symbols, ratios = row["symbol_bytes"], (row["over_entropy"], row["over_adaptive"])
    return [
        f"{row['elements']:,}",
        f"{row['bytes']:,}",
        _share(row["bytes"], whole),
        f"{row['bits_per_weight']:.3f}",
        "-" if symbols is None else f"{symbols:,}",
        *("-" if ratio is None else f"{ratio:.4f}" for ratio in ratios),
    ]


def _share(size: int, whole: int) -> str:
    return f"{size / whole:.1%}"
