"""Quantisation schemes, a module each: a tensor becomes symbols and side information."""

from pgolf.quant.schemes.awq_lite import AwqLite
from pgolf.quant.schemes.int8 import CoarseInt8, Int8Baseline, Int8Rows, SmallInt8
from pgolf.quant.schemes.low_bit import Binary, Ternary
from pgolf.quant.schemes.lqer import Lqer
from pgolf.quant.schemes.percentile import PercentileGptq, PercentileRows
from pgolf.quant.schemes.plain import BFloat16, Float8, Float32, Half, encode_exact
from pgolf.quant.schemes.scheme import Cost, Scheme, gaussian_entropy
from pgolf.quant.schemes.sdclip import Gptq, HessianClip
from pgolf.quant.schemes.sensitivity import SensitivityGptq, TrellisGptq, ZeroTrellisGptq

__all__ = [
    "AwqLite",
    "BFloat16",
    "Binary",
    "CoarseInt8",
    "Cost",
    "Float8",
    "Float32",
    "Gptq",
    "Half",
    "HessianClip",
    "Int8Baseline",
    "Int8Rows",
    "Lqer",
    "PercentileGptq",
    "PercentileRows",
    "Scheme",
    "SensitivityGptq",
    "SmallInt8",
    "Ternary",
    "TrellisGptq",
    "ZeroTrellisGptq",
    "encode_exact",
    "gaussian_entropy",
]
