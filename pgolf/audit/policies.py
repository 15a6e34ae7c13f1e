"""What the rules leave open, by name: each policy says whether a dependence is a failure or is told and allowed."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Policies:
    """isolation: `isolated` fails every reading across documents; `as_declared` those that the strategy did not name
    (`scorer.documents`, by `join_documents` or set; PR 1797 against 1988). order: `text` fails a score that depends on
    a document behind it in the text; `any` allows it (C1 holds in the order of scoring). processes: `equal` fails a
    score that another number of processes changes; `any` allows it (PR 1610: optimiser steps by rank). coverage:
    `every_token` fails positions that were left out; `as_declared` allows those that were left out by name."""

    isolation: Literal["as_declared", "isolated"] = "as_declared"
    order: Literal["any", "text"] = "any"
    processes: Literal["equal", "any"] = "equal"
    coverage: Literal["every_token", "as_declared"] = "every_token"
