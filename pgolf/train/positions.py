"""The data positions of all ranks, for another number of ranks."""

from collections.abc import Mapping, Sequence
from typing import Any

from pgolf.errors import UserError

SHARED = (
    "document_packing",
    "sequential",
    "shared_shuffled_sequence",
)  # loaders in which all ranks stand at one place of the text


def position_of(saved: Sequence[Mapping[str, Any]], fresh: Mapping[str, Any]) -> dict[str, Any]:
    """The state from which a loader whose own first state is `fresh` goes on where the ranks of `saved` stood, after a
    whole step.

    With the same number of ranks that is what its rank saved. With another one it exists where the ranks read one
    stream together; where each draws for itself, no position of one number of ranks is one of another: UserError.
    """
    world_size, rank = int(fresh["world_size"]), int(fresh["rank"])
    if len(saved) == world_size:
        return dict(saved[rank])
    leader = dict(saved[0])
    if leader.get("loader") != fresh.get("loader") or leader.get("loader") not in SHARED:
        raise _refusal(saved, world_size, f"with the loader {leader.get('loader')} each of them draws its own data")
    position = leader | {"world_size": world_size, "rank": rank}
    if "calls_per_fit" not in leader:
        return position
    together, spans = leader["calls_per_fit"] * len(saved), fresh["calls_per_fit"] * world_size
    calls, rest = divmod(int(leader["calls"]) * len(saved), world_size)
    if together != spans or rest or calls % fresh["calls_per_fit"]:
        raise _refusal(saved, world_size, f"they read {together} spans together and this run reads {spans}")
    return position | {"calls": calls, "calls_per_fit": fresh["calls_per_fit"]}


def _refusal(saved: Sequence[Mapping[str, Any]], world_size: int, why: str) -> UserError:
    return UserError(
        f"the checkpoint was written by {len(saved)} process(es) and this run has {world_size}, and {why}: "
        f"continue with launch.nproc={len(saved)}, or delete the checkpoints to train again from step 0."
    )
