"""Which matrices get more bits than others: published rules that rank tensors by what the calibration saw of them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Protocol

from pgolf.quant.hessian import Calibration
from pgolf.quant.rules import Choice
from pgolf.quant.schemes.scheme import Widening, require_bits


class Allocation(Protocol):
    """Gives matrices their bits, before anything is quantised. Estimates, which come before calibration, do not know
    it: they count the bits that the schemes have themselves."""

    needs_bigrams: bool
    """Whether it asks for `Calibration.bigrams`."""

    def bits(self, calibrations: Mapping[str, Calibration]) -> dict[str, int]:
        """Bits of each of the calibrated matrices, which are given in the order of the model."""
        ...


def allocated(
    allocation: Allocation, choices: Sequence[Choice], calibrations: Mapping[str, Calibration]
) -> list[Choice]:
    """The choices with the allocation's bits in place of the schemes' own: of calibrated matrices whose scheme can
    have other bits. ValueError when there is none."""
    known = {
        one.name: calibrations[one.name]
        for one in choices
        if one.role == "matrix" and isinstance(one.scheme, Widening) and one.name in calibrations
    }
    if not known:
        raise ValueError("quant.allocation: no matrix has a calibrated scheme that could have other bits, as gptq has")
    bits = allocation.bits(known)
    return [
        replace(one, scheme=one.scheme.with_bits(bits[one.name]))
        if one.name in bits and isinstance(one.scheme, Widening)
        else one
        for one in choices
    ]


def traces(calibrations: Mapping[str, Calibration]) -> dict[str, float]:
    """The trace of the Hessian of each matrix: what its inputs add up to."""
    return {name: float(one.hessian.diagonal().double().sum()) for name, one in calibrations.items()}


class HessianTrace:
    """int5 for all matrices but those with the largest Hessian traces, which get int6 (records of 2026-03-31 and
    2026-04-03).

    Args:
        bits: of the others (published: 5).
        more_bits: of those with the largest traces (published: 6).
        tensors: how many get more (published: 32, and 66 of 66).
        first: patterns of names that come before all others, among them by trace (published: the blocks that
            recurrence visits again).
    """

    needs_bigrams = False

    def __init__(self, *, bits: int = 5, more_bits: int = 6, tensors: int = 32, first: Sequence[str] = ()):
        require_bits(bits)
        require_bits(more_bits, least=bits)
        if tensors < 1:
            raise ValueError(f"tensors={tensors}: must be 1 or more.")
        self.few, self.many, self.tensors, self.first = bits, more_bits, tensors, tuple(first)

    def bits(self, calibrations: Mapping[str, Calibration]) -> dict[str, int]:
        """`more_bits` for the first of the ranking, `bits` for the others. ValueError for a pattern without a match."""
        useless = [one for one in self.first if not any(fnmatchcase(name, one) for name in calibrations)]
        if useless:
            raise ValueError(f"quant.allocation.first: no calibrated matrix matches {useless[0]!r}")
        found = traces(calibrations)
        ranked = sorted(found, key=lambda name: (not any(fnmatchcase(name, p) for p in self.first), -found[name]))
        return dict.fromkeys(found, self.few) | dict.fromkeys(ranked[: self.tensors], self.many)


class BigramGuided:
    """int5, int6 or int7 by a blend of Hessian trace and bigram score: a recorded negative (0.264 bits per byte lost in
    the one published study, which went back to int6 for all).

    score = (1 - blend) * rank by trace + blend * rank by bigram score, ranks from 0 to 1. The bigram score of a matrix
    is the part of the energy of its inputs that belongs to tokens whose bigram (with the token before) comes again in
    the calibration text, see `pgolf.quant.bigrams`; the study's own definition is not published.

    Args:
        blend: share of the bigram score (published: 0.3).
        low: part of the matrices, of least score, that gets int5 (published: 0.3).
        high: part, of the largest score, that gets int7 (published: 0.2).
    """

    needs_bigrams = True
    levels = (5, 6, 7)

    def __init__(self, *, blend: float = 0.3, low: float = 0.3, high: float = 0.2):
        if not 0 <= blend <= 1:
            raise ValueError(f"blend={blend}: must lie between 0 and 1.")
        if not (low >= 0 and high >= 0 and low + high <= 1):
            raise ValueError(f"low={low} and high={high}: must not be negative, nor add up to more than 1.")
        self.blend, self.low, self.high = blend, low, high

    def bits(self, calibrations: Mapping[str, Calibration]) -> dict[str, int]:
        """Bits by rank of the blended score; equal scores in the order of the model."""
        by_trace = _ranks(traces(calibrations))
        by_bigrams = _ranks({name: one.bigrams or 0.0 for name, one in calibrations.items()})
        score = {name: (1 - self.blend) * by_trace[name] + self.blend * by_bigrams[name] for name in by_trace}
        ranked = sorted(score, key=lambda name: score[name])
        low, high = int(self.low * len(ranked)), len(ranked) - int(self.high * len(ranked))
        places = {name: place for place, name in enumerate(ranked)}
        return {name: self.levels[(places[name] >= low) + (places[name] >= high)] for name in score}


def _ranks(values: Mapping[str, float]) -> dict[str, float]:
    """Place of each among all, from 0 for the least to 1 for the largest."""
    ranked = sorted(values, key=lambda name: values[name])
    return {name: place / max(len(ranked) - 1, 1) for place, name in enumerate(ranked)}
