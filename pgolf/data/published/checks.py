"""What is checked of published shards beyond what every prepared directory is checked for: each shard when it arrives,
the tokenizer against the configuration, and the validation split against the published figures."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pgolf.data.dataset import table_bytes
from pgolf.data.encoding.caseops import ESC, OPERATORS
from pgolf.data.encoding.frontend import FrontEnd
from pgolf.data.encoding.sentencepiece_model import Tokenizer
from pgolf.data.shards import Tokens, read_shard
from pgolf.data.validation import BOS_ID
from pgolf.errors import UserError

ZERO_BLOCK = 512  # Consecutive zeros that no text gives but storage that was reserved and never written does.
SCORED_WINDOW = 2048  # Published evaluations drop the tokens after the last whole window.
SCORED_BYTES_TOLERANCE = 1e-5  # What losses and scores with eight digits imply is not exact to the byte.


def check_written(path: Path) -> None:
    """UserError when a shard is truncated, has another header, or holds a block of zeros."""
    values = read_shard(path)
    if not values.any():
        raise UserError(f"{path.name} holds nothing but zeros.")
    blocks = values[: len(values) // ZERO_BLOCK * ZERO_BLOCK].reshape(-1, ZERO_BLOCK)
    unwritten = np.flatnonzero(~blocks.any(axis=1))
    if len(unwritten):
        first = int(unwritten[0]) * ZERO_BLOCK
        raise UserError(f"{path.name} holds {ZERO_BLOCK} zeros from token {first} on: it was not written to the end.")


def check_tokens(path: Path, vocab_size: int) -> None:
    """UserError when a token shard is damaged, unwritten in part, of another vocabulary, or the first without BOS.

    Later shards may begin, and a short last one even end, inside a document.
    """
    check_written(path)
    values = read_shard(path)
    largest = int(values.max())
    if largest >= vocab_size:
        raise UserError(f"{path.name} holds the id {largest}, but the vocabulary ends at {vocab_size}.")
    if path.name.endswith("_000000.bin") and int(values[0]) != BOS_ID:
        raise UserError(f"{path.name} does not begin with a document (id {BOS_ID}), but with id {int(values[0])}.")


def refuse_front_end(front_end: FrontEnd, vocab_size: int, sha256: str | None, has_sidecar: bool, name: str) -> None:
    """UserError when a tokenizer and the presence of byte counts contradict the configuration.

    A tokenizer with a piece for each CaseOps operator, and byte counts beside the shards, mean transformed text; a
    score of such data without the transform would be off by its operators (#2071).
    """
    description = front_end.description()["tokenizer"]
    if description["vocab_size"] != vocab_size:
        raise UserError(f"the tokenizer of {name} has {description['vocab_size']} ids, data.vocab_size={vocab_size}.")
    if sha256 is not None and description["sha256"] != sha256:
        raise UserError(
            f"the tokenizer of {name} has the SHA-256 {description['sha256']}, data.tokenizer_sha256={sha256}."
        )
    holds_operators = len(caseops_ids(front_end)) > 0
    if front_end.transform is None and (holds_operators or has_sidecar):
        raise UserError(
            f"the shards of {name} hold transformed text ({_signs(holds_operators, has_sidecar)}), but data.transform "
            "is none: bits per byte would be wrong. Use data/transform=caseops."
        )
    if front_end.transform is not None and not (holds_operators and has_sidecar):
        raise UserError(
            f"data.transform is set, but the shards of {name} hold plain text "
            f"({_signs(holds_operators, has_sidecar)}). Use data/transform=none."
        )


def _signs(holds_operators: bool, has_sidecar: bool) -> str:
    return (
        f"its tokenizer has {'a' if holds_operators else 'no'} piece for each operator, and there are "
        f"{'' if has_sidecar else 'no '}byte counts beside its shards"
    )


def caseops_ids(front_end: FrontEnd) -> list[int]:
    """The ids that are CaseOps operators, in the order of the operators; none unless every operator has one."""
    if not isinstance(front_end.tokenizer, Tokenizer):
        return []
    ids = [front_end.tokenizer.processor.piece_to_id(operator) for operator in OPERATORS]
    found = [token for token, operator in zip(ids, OPERATORS, strict=True) if front_end.piece(token) == operator]
    return found if len(found) == len(OPERATORS) else []


def refuse_figures(tokens: Tokens, counts: npt.NDArray[np.integer], expected: dict[str, Any], name: str) -> None:
    """UserError when a validation split is not the published one: scores on it could not be compared with published
    ones."""
    for key, (value, accepted) in _figures(tokens, counts, expected).items():
        if accepted and not _near(key, value, accepted):
            known = " or ".join(f"{one:,}" for one in accepted)
            raise UserError(
                f"the validation split of {name} has {value:,} {key.replace('_', ' ')}, {known} are published: it is "
                f"another split. To use it all the same, set data.{key} to what it has."
            )


def figures(directory: Path, manifest: dict[str, Any]) -> str:
    """The figures of the validation split beside the published ones; UserError when they differ."""
    tokens, counts = _validation(directory, manifest)
    refuse_figures(tokens, counts, manifest["expected"], str(directory))
    return ", ".join(
        f"{value:,} {key.replace('_', ' ')} ({'as published' if accepted else 'no reference'})"
        for key, (value, accepted) in _figures(tokens, counts, manifest["expected"]).items()
    )


def operator_bytes(directory: Path, manifest: dict[str, Any]) -> str:
    """Operators of the transform stand for no byte of the validation text, unless they are escaped."""
    tokens, counts = _validation(directory, manifest)
    operators = caseops_ids(FrontEnd.load(directory, manifest["front_end"]))
    before = np.concatenate([[BOS_ID], tokens[:-1]])
    free = np.isin(tokens, operators) & (before != operators[OPERATORS.index(ESC)])
    if counts[free].any():
        raise UserError(f"{int((counts[free] > 0).sum())} operators stand for bytes of text, they should for none.")
    return f"{int(free.sum()):,} operators stand for no byte"


def published_checks(directory: Path, manifest: dict[str, Any]) -> list[tuple[str, Callable[[], str]]]:
    """What can be checked of downloaded data alone: a name and a check that gives its figures or raises UserError."""
    found: list[tuple[str, Callable[[], str]]] = [("published figures", partial(figures, directory, manifest))]
    if manifest["front_end"]["transform"] is not None:
        found.append(("operator bytes", partial(operator_bytes, directory, manifest)))
    return found


def _figures(
    tokens: Tokens, counts: npt.NDArray[np.integer], expected: dict[str, Any]
) -> dict[str, tuple[int, list[int]]]:
    """Figure -> (its value here, the published values; empty when not known)."""
    scored = (len(tokens) - 1) // SCORED_WINDOW * SCORED_WINDOW
    found = {
        "val_documents": int((tokens == BOS_ID).sum()),
        "scored_tokens": scored,
        "scored_bytes": int(counts[1 : scored + 1].sum(dtype=np.int64)),
    }
    published = {key: value if isinstance(value, list) else [value] for key, value in expected.items()}
    return {key: (value, [one for one in published.get(key, []) if one is not None]) for key, value in found.items()}


def _near(key: str, value: int, accepted: list[int]) -> bool:
    tolerance = SCORED_BYTES_TOLERANCE if key == "scored_bytes" else 0.0
    return any(abs(value - one) <= tolerance * one for one in accepted)


def _validation(directory: Path, manifest: dict[str, Any]) -> tuple[Tokens, npt.NDArray[np.integer]]:
    """The tokens and byte counts of the validation split."""
    tokens = np.concatenate([read_shard(directory / name) for name in manifest["splits"]["val"]["files"]])
    if manifest["byte_accounting"] == "lut":
        return tokens, table_bytes(FrontEnd.load(directory, manifest["front_end"]), tokens)
    counts = np.concatenate([read_shard(directory / name) for name in manifest["byte_files"]])
    if len(tokens) != len(counts):
        raise UserError(f"{len(tokens)} validation tokens have {len(counts)} byte counts.")
    return tokens, counts
