"""`pgolf doctor`: what this machine can run, and the command that mends what is missing."""

import argparse
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from pgolf import __version__
from pgolf.app.console import Screen

if TYPE_CHECKING:
    import torch

PYTHONS = ((3, 11), (3, 13))
LEAST_DISK = 5 * 10**9  # bytes: an embedded corpus, checkpoints, some runs
STYLES = {"ok": "green", "missing": "yellow", "broken": "bold red"}


@dataclass(frozen=True)
class Finding:
    """One line. state: `ok`, `missing` (optional) or `broken` (needed); remedy: what mends it."""

    what: str
    state: str
    detail: str
    remedy: str = ""


def main(arguments: list[str]) -> int:
    """Run the verb; 1 when something that pgolf needs is broken."""
    made = argparse.ArgumentParser(prog="pgolf doctor", description=__doc__)
    made.parse_args(arguments)
    findings = list(examine())
    table = Table(title=f"pgolf {__version__}")
    for column in ("what", "state", "detail", "remedy"):
        table.add_column(column)
    for one in findings:
        table.add_row(one.what, Text(one.state, STYLES[one.state]), Text(one.detail), Text(one.remedy))
    Screen().tables([table])
    return 1 if any(one.state == "broken" for one in findings) else 0


def examine() -> Iterator[Finding]:
    """Everything there is to say about this machine."""
    version = platform.python_version_tuple()
    fits = PYTHONS[0] <= (int(version[0]), int(version[1])) <= PYTHONS[1]
    yield Finding(
        "python",
        "ok" if fits else "broken",
        platform.python_version(),
        "" if fits else "use Python 3.11 to 3.13",
    )
    yield Finding(
        "machine",
        "ok",
        f"{os.cpu_count()} cores, {_memory()}, {platform.system()} {platform.machine()}",
    )
    yield _disk()
    for package in ("hydra-core", "omegaconf", "sentencepiece", "safetensors", "numpy"):
        yield _package(package, "broken", f"pip install {package}")
    yield from _torch()
    yield from _coders()
    for extra, packages in EXTRAS.items():
        for package, purpose in packages.items():
            yield _package(package, "missing", f'pip install "pgolf[{extra}]"', purpose)
    yield _compiler()


def _memory() -> str:
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return f"{pages * size / 2**30:.0f} GiB of memory"


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free
    enough = free >= LEAST_DISK
    remedy = "" if enough else "free some space, or set paths.runs and paths.data elsewhere"
    return Finding("free disk here", "ok" if enough else "missing", f"{free / 10**9:.1f} GB", remedy)


def _package(name: str, otherwise: str, remedy: str, purpose: str = "") -> Finding:
    """A package by its installed version. purpose: what cannot be done without it."""
    use = f" (for {purpose})" if purpose else ""
    try:
        return Finding(name, "ok", importlib.metadata.version(name) + use)
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, otherwise, "not installed" + use, remedy)


def _torch() -> Iterator[Finding]:
    if importlib.util.find_spec("torch") is None:
        yield Finding("torch", "broken", "not installed", "pip install torch (see pytorch.org for your GPU)")
        return
    import torch

    yield Finding("torch", "ok", torch.__version__)
    number = torch.cuda.device_count() if torch.cuda.is_available() else 0
    device = torch.device("cuda", 0) if number else torch.device("cpu")
    if number:
        name = torch.cuda.get_device_name(0)
        yield Finding("GPU", "ok", f"{number} x {name}, CUDA {torch.version.cuda}")
    else:
        built = torch.version.cuda is not None
        remedy = "check the driver with nvidia-smi" if built else "install a CUDA build of torch to use one"
        yield Finding("GPU", "missing", "none; scale=mini runs on the CPU", remedy)
    yield from _attention(device)
    yield from _fused(device)


def _attention(device: "torch.device") -> Iterator[Finding]:
    """Every attention back end, tried forward and backward; the first that works is what kernels=auto takes."""
    from pgolf.kernels.attend import BACKENDS, probe, usual_dtype

    dtype = str(usual_dtype(device)).removeprefix("torch.")
    chosen = False
    for name in BACKENDS:
        if reason := probe(name, device):
            remedy = REMEDIES.get(name, "") if device.type == "cuda" else ""
            yield Finding(f"attention: {name}", "missing", reason, remedy)
            continue
        taken = "" if chosen else "; kernels=auto takes it"
        yield Finding(f"attention: {name}", "ok", f"works on {device} in {dtype}{taken}")
        chosen = True
    if not chosen:
        yield Finding("attention", "broken", "no back end works: training and scoring cannot run", "reinstall torch")


def _fused(device: "torch.device") -> Iterator[Finding]:
    """Every fused kernel, tried forward and backward."""
    from pgolf.kernels.fused.choice import MODULES, PAYS, probe, usual_dtype

    for name in MODULES:
        if reason := probe(name, device):
            yield Finding(f"fused kernel: {name}", "missing", reason)
            continue
        dtype = str(usual_dtype(device)).removeprefix("torch.")
        pays = "fused=auto takes it" if name in PAYS else "not measured to pay; fused=auto leaves it out"
        yield Finding(f"fused kernel: {name}", "ok", f"works on {device} in {dtype}; {pays}")


EXTRAS = {  # extra of the distribution -> package -> what it is for
    "track": {"wandb": "track=wandb", "wandb-workspaces": "scripts/wandb_report.py"},
    "report": {"matplotlib": "plots", "scipy": "pgolf compare"},
    "hub": {"huggingface_hub": "pgolf data download"},
    "parquet": {"pyarrow": "documents in .parquet files"},
    "gpu": {"triton": "kernels and torch.compile on a GPU"},
    "cluster": {
        "hydra-submitit-launcher": "hydra/launcher=slurm_node|slurm_gpu",
        "hydra-ray-launcher": "hydra/launcher=ray_gpus",
    },
    "packed": {"hydra-joblib-launcher": "several jobs at a time on one machine"},
}
REMEDIES = {
    "flash3": "Hopper GPUs only: build the `hopper` folder of FlashAttention's repository",
    "flash2": "pip install flash-attn --no-build-isolation",
    "varlen": "torch 2.10 or later",
}


def _coders() -> Iterator[Finding]:
    from pgolf.errors import UserError
    from pgolf.quant.coders import CODERS

    data = b"pgolf" * 100
    for name, coder in CODERS.items():
        try:
            works = coder.decode(coder.encode(data), len(data)) == data
            yield Finding(
                f"coder: {name}",
                "ok" if works else "broken",
                "round trip" if works else "does not round-trip",
            )
        except UserError as error:
            yield Finding(f"coder: {name}", "missing", str(error))


def _compiler() -> Finding:
    path = shutil.which("g++") or shutil.which("clang++")
    if path is None:
        return Finding("C++ compiler", "missing", "torch.compile on the CPU needs one", "apt-get install g++")
    first = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout.splitlines()
    return Finding("C++ compiler", "ok", first[0] if first else path)
