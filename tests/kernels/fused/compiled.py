"""A program: launch every fused kernel as its example does, and the products as full size does, and compile what is
launched for a GPU that is not needed.

The interpreter takes programs that the compiler refuses (a branch that changes the type of a name, say), so the tests
run both. Prints a line of JSON for every kernel.
"""

import json
import os
import sys

os.environ["TRITON_INTERPRET"] = "0"

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from pgolf.kernels.fused import choice, launch

POINTERS = {torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.int64: "*i64"}


def kind(argument) -> str:
    if isinstance(argument, torch.Tensor):
        return POINTERS[argument.dtype]
    return "i32" if isinstance(argument, int) else "fp32"


def compile_instead(capability: int, tiles: str):
    """What takes the place of a launch: the same kernel and arguments, compiled and not run. Sizes that 16 divides are
    said to be such, as a launch says it: loads are wide then, and come ahead through shared memory."""

    def run(kernel, *arguments, grid, warmup, num_warps=4, num_stages=3, **constants):
        names = kernel.arg_names
        signature = {name: kind(argument) for name, argument in zip(names, arguments, strict=False)}
        sizes = {name for name, one in zip(names, arguments, strict=False) if isinstance(one, int) and one % 16 == 0}
        aligned = {
            (i,): [["tt.divisibility", 16]]
            for i, name in enumerate(names)
            if signature.get(name, "")[:1] == "*" or name in sizes
        }
        source = ASTSource(
            fn=kernel,
            signature={name: signature.get(name, "constexpr") for name in names},
            constexprs={(names.index(name),): value for name, value in constants.items()},
            attrs=aligned,
        )
        options = {"num_warps": num_warps, "num_stages": num_stages}
        made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
        found = {"kernel": f"{kernel.fn.__module__.split('.')[-1]}.{kernel.__name__}", "shared": made.metadata.shared}
        facts = {"tiles": tiles, "tensor_cores": "wgmma" in made.asm["ptx"], "ahead": "cp.async" in made.asm["ptx"]}
        print(json.dumps({**found, **facts}), flush=True)

    return run


def both_ways(kernel, tensors, rest) -> None:
    """A launch forward and backward."""
    made = kernel.fused(*(one.requires_grad_() for one in tensors), *rest)
    outputs = [made] if isinstance(made, torch.Tensor) else list(made)
    torch.autograd.grad([one.sum() for one in outputs], tensors)


def main(capability: int) -> None:
    JITFunction.run = compile_instead(capability, "small")
    launch.INTERPRETED = launch.SIXTEEN_BIT  # what a GPU would be given; tensors lie on the CPU here
    for name in choice.MODULES:
        kernel = choice.module(name)
        both_ways(kernel, *kernel.example(torch.device("cpu"), torch.bfloat16, torch.Generator()))
    JITFunction.run = compile_instead(capability, "hopper")
    launch.INTERPRETED = launch.HOPPER
    shapes = {"mlp": [(256, 128), (256, 128), (128, 256)], "symmetric": [(2, 256, 128), (2, 256, 256)]}
    for name, rest in (("mlp", [0.5]), ("symmetric", [0.5, -2.0])):
        both_ways(choice.module(name), [torch.empty(shape, dtype=torch.bfloat16) for shape in shapes[name]], rest)


if __name__ == "__main__":
    main(int(sys.argv[1]))
