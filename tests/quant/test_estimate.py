"""The estimate against what packing gives, against closed forms, and against the sizes of published artifacts."""

import math

import numpy as np
import pytest
import torch

from pgolf.quant.coders import CODERS
from pgolf.quant.estimate import EXPECTED_ERROR, by_coder, estimate, saved_bits
from pgolf.quant.rules import Choice
from pgolf.quant.schemes import Gptq, Half, Int8Rows
from pgolf.quant.schemes.scheme import gaussian_entropy

PUBLISHED = {  # clips in standard deviations and bits -> bytes of the weights, mean of the runs
    "pr1394": ((12.85, 12.85, 20.0, 8), "none", "brotli", 15_970_162),
    "pr1626": ((13.0, 12.0, 15.0, 7), "none", "brotli", 15_907_442),
    "pr1736": ((13.0, 12.0, 15.0, 7), "full", "brotli", 15_947_095),
    "pr1787": ((13.0, 12.0, 15.0, 7), "sparse", "brotli", 15_909_630),
    "pr1855": ((13.0, 11.5, 14.0, 7), "sparse", "lrzip", 15_869_920),
    "pr1855 with brotli": ((13.0, 11.5, 14.0, 7), "sparse", "brotli", 16_080_008),
}


def published_tensors(clips, gate):
    """Names, shapes and schemes of the published 11 layers of width 512; one tensor stands for 30,875 scalars."""
    attention, mlp, embedding, bits = clips
    shapes = {"tok_emb.weight": (8192, 512), "scalars": (30_875,)}
    schemes = {"tok_emb.weight": Gptq(bits=bits, clip_sigmas=embedding), "scalars": Half()}
    parts = {"attn.c_q": (512, 512), "attn.c_k": (256, 512), "attn.c_v": (256, 512), "attn.proj": (512, 512)}
    parts |= {"mlp.fc": (2048, 512), "mlp.proj": (512, 2048)}
    for layer in range(11):
        for part, shape in parts.items():
            name = f"blocks.{layer}.{part}.weight"
            shapes[name] = shape
            schemes[name] = Gptq(bits=6, clip_sigmas=mlp if "mlp" in part else attention)
        if gate != "none":
            name = f"blocks.{layer}.attn.gate.attn_gate_w"
            shapes[name], schemes[name] = (8, 512 if gate == "full" else 12), Int8Rows()
    return [Choice(name, "matrix", scheme) for name, scheme in schemes.items()], shapes


@pytest.mark.parametrize("record", PUBLISHED)
def test_published_sizes_are_met_within_the_error_that_is_told(record):
    clips, gate, coder, size = PUBLISHED[record]
    choices, shapes = published_tensors(clips, gate)
    assert by_coder(choices, shapes)[coder] == pytest.approx(size, rel=EXPECTED_ERROR)


def test_columns_of_one_spread_save_nothing_and_others_what_the_closed_forms_say():
    assert saved_bits(0.0, 0.0) == saved_bits(0.0, 1.0) == 0.0
    for spread in (0.05, 0.1, 0.2):
        assert saved_bits(spread, 1.0) == pytest.approx(spread**2 / math.log(2))
        excess = 3 * (math.exp(4 * spread**2) - 1)  # kurtosis of the mixture; the negentropy is its square over 48
        assert saved_bits(spread, 0.0) == pytest.approx(excess**2 / 48 / math.log(2), rel=0.4, abs=1e-5)
        assert saved_bits(spread, 0.0) < saved_bits(spread, 0.5) < saved_bits(spread, 1.0)


def test_symbols_of_such_columns_have_the_entropy_of_the_model():
    spread, levels = 0.27, 31
    generator = torch.Generator().manual_seed(0)
    columns = torch.exp(spread * torch.randn(2048, generator=generator) - spread**2)
    weights = torch.randn(512, 2048, generator=generator) * columns / columns.square().mean().sqrt()
    step = 12.0 / levels
    counts = np.unique((weights / step).round().clamp(-levels, levels).numpy(), return_counts=True)[1] / weights.numel()
    measured = -float((counts * np.log2(counts)).sum())
    assert gaussian_entropy(step, levels) - measured == pytest.approx(saved_bits(spread, 0.0), abs=0.006)


def test_coarse_symbols_and_stored_ones_are_not_made_smaller():
    choices = [Choice("blocks.0.mlp.proj.weight", "matrix", Gptq(bits=2, clip_sigmas=4.5))]
    shapes = {"blocks.0.mlp.proj.weight": (64, 256)}
    stored = estimate(choices, shapes, "none")[0]["estimated_bytes"]
    assert stored == 64 * 256 + 2 * 64
    coarse = 64 * 256 * gaussian_entropy(4.5, 1) * CODERS["brotli"].overhead / 8
    assert estimate(choices, shapes, "brotli")[0]["estimated_bytes"] == pytest.approx(coarse + 0.61 * 128, abs=2)
