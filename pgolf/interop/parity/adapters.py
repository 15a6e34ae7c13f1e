"""Names of adapters in the record scripts."""

import re

from pgolf.interop.parity.case import Unsupported
from pgolf.model.context import HEAD_SLOT

LORA_SITES = {"q_loras": "q", "k_loras": "k", "v_loras": "v", "o_loras": "o", "mlp_loras": "mlp"}


def adapter_place(name: str) -> tuple[str, str]:
    """`q_loras.3.A` -> ("3:q", "A"): the place of an adapter here, and which half it is."""
    if match := re.fullmatch(r"lm_head_lora\.([AB])", name):
        return f"{HEAD_SLOT}:head", match[1]
    match = re.fullmatch(r"(\w+)\.(\d+)\.([AB])", name)
    if match is None or match[1] not in LORA_SITES:
        raise Unsupported(f"adapter {name} is not known")
    return f"{match[2]}:{LORA_SITES[match[1]]}", match[3]
