"""Verification of a prepared directory: everything the manifest says is computed again."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from pgolf.console import Console, Silent
from pgolf.data.manifest import SPLITS, read_manifest
from pgolf.data.preparation.processes import count_cores, in_processes
from pgolf.data.published.checks import published_checks
from pgolf.data.verification import structure
from pgolf.data.verification.inspection import ENCODING, SIDECAR, TABLE, TEXTS, Found, Inspector, Part, look
from pgolf.errors import UserError

PART_TOKENS = 2**19
INLINE_TOKENS = 2**24  # Fewer are looked at in this process: others take a second to start.
OPERATOR_SHARE = 0.001  # English text has some 10 %; a stray private-use character in plain text is no transform.
RATIO_TOLERANCE = 0.01  # Stripped spaces and NFKC move the bytes of real text by less; known errors by 17 %.


@dataclass(frozen=True)
class Check:
    """One line of a verification: what was checked, whether it held, the figures or the fault."""

    name: str
    passed: bool
    detail: str


def verify(
    directory: Path,
    console: Console | None = None,
    *,
    differences: Callable[[dict[str, Any]], list[str]] | None = None,
    workers: int | None = None,
) -> list[Check]:
    """Check a prepared directory completely; reads and decodes every token.

    Args:
        differences: what a configuration finds different in a manifest, for a check of its own; None without a
            configuration.
        workers: processes; None uses every core when there is much to read.

    Every check is made that can be made: after a damaged manifest there is only that one result, and the documents
    are not decoded unless their beginnings agree with the index.
    """
    console = console or Silent()
    checks: list[Check] = []

    def attempt(name: str, check: Callable[[], str]) -> bool:
        try:
            checks.append(Check(name, True, check()))
        except (UserError, KeyError, TypeError, ValueError, IndexError, OSError) as error:
            checks.append(Check(name, False, str(error)))
        return checks[-1].passed

    if not attempt("manifest", lambda: f"digest {read_manifest(directory)['digest'][:16]}"):
        return checks
    manifest = read_manifest(directory)
    attempt("agreement", lambda: structure.agreement(directory, manifest))
    if differences is not None:
        attempt("configuration", lambda: _configuration(differences(manifest)))
    attempt("file sizes", lambda: structure.sizes(directory, manifest))
    attempt("file hashes", lambda: structure.hashes(directory, manifest, console))
    tokenizer = attempt("tokenizer", lambda: structure.tokenizer(directory, manifest))
    listed = attempt("document counts", lambda: structure.counts(directory, manifest))
    if listed:
        attempt("partition", lambda: structure.partition(directory, manifest))
    readable = attempt("shard headers", lambda: structure.headers(directory, manifest))
    readable = readable and attempt("shard contents", lambda: structure.contents(directory, manifest))
    if readable and tokenizer and manifest.get("expected") is not None:
        for name, check in published_checks(directory, manifest):
            attempt(name, check)
    found = readable and listed
    if readable:
        found &= attempt("vocabulary", lambda: structure.vocabulary(directory, manifest))
        found &= attempt("BOS count", lambda: structure.bos_count(directory, manifest))
        found &= attempt("empty documents", lambda: structure.empty(directory, manifest))
    if readable and listed:
        found &= attempt("document starts", lambda: structure.starts(directory, manifest))
    if not (found and tokenizer):
        checks.append(Check(TEXTS, False, "not checked, because the documents cannot be told apart (see above)."))
        return checks
    return checks + _documents(directory, manifest, console, workers)


def _configuration(differences: list[str]) -> str:
    if differences:
        raise UserError(f"{'. '.join(differences)}.")
    return "transform, tokenizer and split are those of the configuration"


def _documents(directory: Path, manifest: dict[str, Any], console: Console, workers: int | None) -> list[Check]:
    """The checks that decode every document."""
    inspector = Inspector(directory, manifest)
    parts = [part for split in ("val", "train") for part in _parts(split, inspector.indexes[split].starts)]
    total = sum(manifest["splits"][split]["tokens"] for split in SPLITS)
    count = (count_cores() if total > INLINE_TOKENS else 1) if workers is None else workers
    summary = _Summary(inspector)
    with console.task("Decoding documents", sum(len(inspector.indexes[split]) for split in SPLITS)) as task:
        done = 0
        results = in_processes(look, inspector, parts, count) if count > 1 else ((p, inspector.look(p)) for p in parts)
        for part, found in results:
            summary.add(part, found)
            done += part.last - part.first
            task.update(done)
    return summary.checks()


def _parts(split: str, starts: np.ndarray) -> Iterator[Part]:
    """Documents in portions of some PART_TOKENS tokens."""
    cuts = np.unique(
        np.searchsorted(starts, np.arange(0, starts[-1] + PART_TOKENS, PART_TOKENS)).clip(0, len(starts) - 1)
    )
    cuts[-1] = len(starts) - 1
    for first, last in pairwise(cuts):
        yield Part(split, int(first), int(last))


class _Summary:
    """What all parts say together. Validation comes first, so that training texts can be compared with it."""

    def __init__(self, inspector: Inspector):
        self.inspector, self.manifest = inspector, inspector.manifest
        self.problems: dict[str, str] = {}
        self.validation: dict[bytes, int] = {}
        self.bytes = {"decoded": 0, "charged": 0}
        self.operators, self.has_capitals = 0, False

    def add(self, part: Part, found: Found) -> None:
        """Take in one part."""
        self.problems = found.problems | self.problems
        self.operators += found.operators
        self.has_capitals |= found.has_capitals
        if part.split == "val":
            self.validation.update((digest, part.first + at) for at, digest in enumerate(found.digests))
            self.bytes["decoded"] += found.decoded_bytes
            self.bytes["charged"] += found.charged_bytes
            return
        for at, digest in enumerate(found.digests):
            if digest in self.validation:
                names = [
                    self.inspector.indexes[s].name(n)
                    for s, n in (("val", self.validation[digest]), ("train", part.first + at))
                ]
                self.problems.setdefault(
                    "disjoint splits",
                    f"validation document {names[0]!r} is also the training document {names[1]!r} (SHA-256 "
                    f"{digest.hex()[:16]}...): a score on it would be worthless.",
                )

    def checks(self) -> list[Check]:
        """One line for each check that applies."""
        front_end, splits = self.inspector.front_end, self.manifest["splits"]
        charged, decoded = self.bytes["charged"], self.bytes["decoded"]
        passed = {"disjoint splits": f"no text of {len(self.validation)} validation documents is in training"}
        if front_end.lossless:
            count = sum(splits[split]["documents"] for split in SPLITS)
            passed[TEXTS] = f"{count} documents decode to the texts of the index"
            passed[ENCODING] = "the tokens are those that the front end makes of the texts"
            if self.inspector.table is not None:
                passed[TABLE] = "a table of bytes per id gives the same bytes for every document"
        passed[SIDECAR] = (
            f"{splits['val']['tokens']} validation tokens are charged {charged} bytes, {decoded} are decoded"
        )
        if charged != splits["val"]["charged"]:
            self.problems.setdefault(
                SIDECAR, f"{charged} bytes are charged, the manifest says {splits['val']['charged']}."
            )
        self._operators(passed)
        if not front_end.lossless:
            ratio = charged / max(decoded, 1)
            passed["byte ratio"] = f"{ratio:.5f} bytes charged per byte decoded"
            # What this project prepares is checked against each original; of downloaded data there are no originals.
            if self.manifest.get("recipe") is None and abs(ratio - 1) > RATIO_TOLERANCE:
                self.problems["byte ratio"] = (
                    f"{passed['byte ratio']}: bits per byte would be wrong by about that ratio."
                )
        return [Check(name, name not in self.problems, self.problems.get(name, line)) for name, line in passed.items()]

    def _operators(self, passed: dict[str, str]) -> None:
        """Operators must be there exactly when the manifest says that text with capitals was transformed."""
        tokens = sum(self.manifest["splits"][split]["tokens"] for split in SPLITS)
        share, transform = self.operators / tokens, self.manifest["front_end"]["transform"]
        passed["operators"] = (
            f"{100 * share:.2f} % of the tokens are operators, transform {transform and transform['kind']}"
        )
        if transform is None and share > OPERATOR_SHARE:
            self.problems["operators"] = (
                f"{passed['operators']}: the text was transformed but would be charged as if it were not."
            )
        if transform is not None and self.has_capitals and not self.operators:
            self.problems["operators"] = f"{passed['operators']}: no text was transformed, though the manifest says so."
