"""The byte budget: weights and code against the limit, in both readings of the rule, and what would save most.

The rule counts "code bytes plus compressed model bytes". By the letter that is what is shipped, here code.zip; the
records count the code as one minified, compressed file, here wrapper.py. Both hold the modules that train, compress and
score, both are measured on disk, and one of them decides.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pgolf.quant import container, packer
from pgolf.quant.account import entropy_bits
from pgolf.quant.code import write_code_archive
from pgolf.quant.container import StoredTensor
from pgolf.quant.wrapper import write_wrapper

Reading = Literal["wrapped", "shipped"]
FILES: dict[Reading, str] = {"wrapped": "wrapper.py", "shipped": "code.zip"}
SAVINGS = 3


@dataclass(frozen=True)
class Saving:
    """One way to fewer bytes. `exact`: made and measured, not estimated."""

    change: str
    bytes: int
    exact: bool


def write_code(directory: Path, entries: Sequence[str], cache_root: Path | None = None) -> None:
    """Write code.zip and wrapper.py with the modules that the entries need; `cache_root` as each of them takes it."""
    write_code_archive(directory / FILES["shipped"], entries=entries, cache_root=cache_root)
    write_wrapper(directory / FILES["wrapped"], entries=entries, cache_root=cache_root)


def artifact_bytes(directory: Path, limit_bytes: int, reading: Reading = "wrapped") -> dict[str, Any]:
    """The byte account of a run directory from the sizes on disk.

    Returns {weight_bytes, code_bytes, total_bytes, limit_bytes, margin_bytes, fits} in the reading that decides, its
    name under `reading`, and under `readings` {code_bytes, total_bytes, margin_bytes, fits} of each; where it does not
    fit, the `savings` too, the largest first.
    """
    weights = directory / "artifact.pgolf"
    size = weights.stat().st_size
    readings: dict[str, dict[str, Any]] = {}
    for name, file in FILES.items():
        code = (directory / file).stat().st_size
        margin = limit_bytes - size - code
        readings[name] = {
            "code_bytes": code,
            "total_bytes": size + code,
            "margin_bytes": margin,
            "fits": margin >= 0,
        }
    account: dict[str, Any] = {"weight_bytes": size, "limit_bytes": limit_bytes, "reading": reading}
    account |= {"readings": readings, **readings[reading]}
    if not account["fits"]:
        code_saved = readings[reading]["code_bytes"] - readings["wrapped"]["code_bytes"]
        account["savings"] = [asdict(one) for one in savings(weights, code_saved)]
    return account


def savings(path: Path, code_saved: int = 0) -> list[Saving]:
    """The largest savings at hand for an artifact, at most SAVINGS; `code_saved`: what wrapping the code would save."""
    tensors, metadata = container.read(path)
    header, _ = container.read_header(path)
    found = [_coarser(role, tensors) for role in dict.fromkeys(tensor.role for tensor in tensors)]
    found.append(Saving("quant.reading=wrapped: the code as one compressed file", code_saved, True))
    if header.coder != "rans":
        size = packer.file_size(*packer.build(tensors, metadata, coder="rans"))
        found.append(Saving("quant.coder=rans: another coder, the same weights", path.stat().st_size - size, True))
    found.append(_narrower(tensors))
    return sorted((one for one in found if one.bytes > 0), key=lambda one: -one.bytes)[:SAVINGS]


def _coarser(role: str, tensors: list[StoredTensor]) -> Saving:
    """Steps twice as wide for a role: the entropy that its symbols would lose."""
    bits, labels = 0.0, []
    for tensor in tensors:
        symbols = tensor.encoded.parts.get("symbols")
        if tensor.role == role and symbols is not None:
            bits += entropy_bits(symbols) - entropy_bits(symbols >> 1)  # pairs of neighbours become one
            labels.append(tensor.encoded.scheme)
    names = ", ".join(dict.fromkeys(labels))
    return Saving(f"quant.{role}: steps twice as wide ({names}), about one bit a weight less", int(bits / 8), False)


def _narrower(tensors: list[StoredTensor]) -> Saving:
    """Tensors that are stored as floats with rows of 8-bit integers instead."""
    widths = [
        array.nbytes * (1 - 1 / array.itemsize)
        for tensor in tensors
        for name, array in tensor.encoded.parts.items()
        if name == "values" and array.ndim == 2
    ]
    change = "quant.min_quantised_elements: matrices that are stored as floats in eight bits"
    return Saving(change, int(sum(widths)), False)
