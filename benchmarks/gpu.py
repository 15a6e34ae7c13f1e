"""One GPU, one table: what a rank of the full-size presets does in a training step, and what each kernel brings.

    python benchmarks/gpu.py                                    on a GPU, all of it
    python benchmarks/gpu.py --only steps --presets pr1736      one part, one preset: where a command's time is limited
    python benchmarks/gpu.py --device cpu --scale mini --tokens 1024 --repeats 2 --eager     that it runs at all

Parts: steps (forward, loss and backward of one micro-batch: plain operations, each fused kernel alone, all of them;
eager and compiled), attention (every back end that works here), muon (one step over all matrices, and over the share of
one rank of eight), gptq (calibration and quantisation of the whole model), adaptation (a chunk of a batch of adapters,
compiled and not). Weights and text are random: times do not depend on what a model knows. Every ratio is against the
first line of its block, measured in the same process, in turn; medians of --repeats, by device events on a GPU. MFU is
of 989 TFLOP/s (bf16 without sparsity, H100 and H200); the ceiling measured here stands beside it. Prints the table and
writes benchmarks/results/gpu-<device>-<date>.json and .md.
"""

import argparse
import datetime
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pgolf.app.machine import prepare_process

prepare_process()

from pgolf.app import build  # noqa: E402
from pgolf.app.verbs.composing import compose  # noqa: E402
from pgolf.data.loaders import Batch  # noqa: E402
from pgolf.errors import UserError  # noqa: E402
from pgolf.files import write_bytes, write_json  # noqa: E402
from pgolf.kernels import attend  # noqa: E402
from pgolf.kernels.fused import choice  # noqa: E402
from pgolf.kernels.fused.kernels import UNFUSED, Fused  # noqa: E402
from pgolf.model.flops import flops_per_token  # noqa: E402
from pgolf.model.gpt import GPT  # noqa: E402
from pgolf.model.roles import parameter_roles  # noqa: E402
from pgolf.report.tables import markdown_table  # noqa: E402
from pgolf.train.batches import batch_loss  # noqa: E402
from pgolf.train.loss.forward import loss_of  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
PEAK = 989e12  # bf16 operations a second, dense, from the data sheets of H100 and H200
RANKS, BATCH = 8, 786_432  # of the published runs
PUBLISHED_STEP = "121 to 123 ms"  # PR 1736 and after, 8 H100s
VOCABULARY = 8192
HEADERS = ["what", "ratio", "ms", "tokens/s", "MFU", "peak GiB", "note"]
Work = Callable[[], object]
Row = dict[str, Any]


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write; the exit status is 1 when a part failed."""
    options = _parser().parse_args(arguments)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError("there is no GPU here; --device cpu --scale mini --tokens 1024 --eager shows that it runs.")
    told = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
    facts = {**_environment(device), "ceiling_tflops": _ceiling(device), "options": told}
    rows, failed = [], []
    for preset in options.presets:
        bench = Bench(preset, device, options)
        for name in PARTS if options.only is None else [options.only]:
            begun = time.monotonic()
            try:
                found = PARTS[name](bench)
            except Exception as error:  # one part that fails must not take the others' figures along
                failed.append(f"{preset} {name}: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}")
                print(failed[-1], flush=True)
                continue
            rows += [{"preset": preset, "part": name, **row} for row in found]
            print(f"{preset} {name}: {time.monotonic() - begun:.0f} s", flush=True)
            if not options.dry:
                keep(options.out, facts, rows, failed)
    print(render(facts, rows, failed))
    return 1 if failed else 0


def keep(folder: Path, facts: dict[str, Any], rows: list["Row"], failed: list[str]) -> None:
    """Write what is known so far, so that a time limit takes the part under way alone."""
    stem = folder / f"gpu-{facts['slug']}-{facts['date']}"
    write_json(stem.with_suffix(".json"), {"facts": facts, "rows": rows, "failed": failed})
    write_bytes(stem.with_suffix(".md"), render(facts, rows, failed).encode())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=["pr1736", "pr1855"], metavar="NAME")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--scale", default="full", choices=("full", "mini", "nano"))
    parser.add_argument(
        "--tokens", type=int, default=98_304, help="of a micro-batch: what each of 8 ranks sees (98304)"
    )
    parser.add_argument("--repeats", type=int, default=20, metavar="N", help="timed calls, after three others (20)")
    parser.add_argument("--only", choices=tuple(PARTS), help="one part")
    parser.add_argument("--eager", action="store_true", help="compile nothing")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "benchmarks" / "results", metavar="DIR", help="for the files"
    )
    parser.add_argument("--dry", action="store_true", help="write no files")
    return parser


class Bench:
    """One preset on one device: its recipe with random weights, and random packed documents."""

    def __init__(self, preset: str, device: torch.device, options: argparse.Namespace) -> None:
        self.preset, self.device, self.options = preset, device, options
        overrides = [f"experiment={preset}", f"scale={options.scale}", "data=pydocs"]
        self.recipe = build.recipe(compose(overrides, _no_files()).config)
        self.tokens, self.length = options.tokens, self.recipe.train.sequence_tokens
        random = torch.Generator().manual_seed(0)
        rows = torch.randint(VOCABULARY, (1, self.tokens + 1), generator=random)
        bounds = torch.tensor([*range(0, self.tokens, max(1, 3 * self.length // 4)), self.tokens], dtype=torch.int32)
        self.batch = Batch(rows[:, :-1], rows[:, 1:], bounds)

    def model(self) -> GPT:
        """The full model along its last plan; output projections are not zero, so that nothing is trivial."""
        model = self.recipe.model(VOCABULARY, 0).to(self.device)
        model.set_plan(list(model.plans)[-1])
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
        return model

    def attention(self, name: str = "auto") -> tuple[str, attend.Attention]:
        """The back end that is called so, or the one that `auto` takes."""
        return attend.select(name, self.device)[:2]

    def step(self, model: GPT, attention: attend.Attention, fused: Fused, compiled: bool) -> Work:
        """Forward, loss and backward of one micro-batch."""
        loss = torch.compile(loss_of) if compiled else loss_of

        def work() -> None:
            model.zero_grad(set_to_none=True)
            found, _ = batch_loss(model, self.batch, attention, self.device, self.length, loss, fused=fused)
            found.backward()

        return work

    def time(self, works: dict[str, Work], setups: dict[str, str] | None = None) -> list[Row]:
        """Median milliseconds and peak memory of each, the calls of all in turn."""
        for work in works.values():
            for _ in range(3):
                work()
        times: dict[str, list[float]] = {name: [] for name in works}
        peaks: dict[str, float] = {}
        for _ in range(self.options.repeats):
            for name, work in works.items():
                taken, peak = self._once(work)
                times[name].append(taken)
                peaks[name] = max(peak, peaks.get(name, 0.0))
        medians = {name: statistics.median(values) for name, values in times.items()}
        first = next(iter(medians.values()))
        return [
            {
                "what": name,
                "ratio": first / median,
                "ms": median,
                "quartiles_ms": statistics.quantiles(times[name], n=4) if len(times[name]) > 1 else [median] * 3,
                "peak_gib": peaks[name],
                "note": (setups or {}).get(name, ""),
            }
            for name, median in medians.items()
        ]

    def _once(self, work: Work) -> tuple[float, float]:
        if self.device.type != "cuda":
            begun = time.perf_counter()
            work()
            return 1e3 * (time.perf_counter() - begun), 0.0
        torch.cuda.reset_peak_memory_stats()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end), torch.cuda.max_memory_allocated() / 2**30


def steps(bench: Bench) -> list[Row]:
    """A micro-batch with plain operations, with each kernel alone and with all; eager and compiled."""
    model, (backend, attention) = bench.model(), bench.attention()
    operations = flops_per_token(model, model.plan, bench.length).training * bench.tokens
    chosen, notes = _kernels(bench.device)
    works, said = {}, {}
    for compiled in [False] if bench.options.eager else [True, False]:
        form = "compiled" if compiled else "eager"
        for label, fused in chosen.items():
            if not compiled and label not in ("plain", "all kernels"):
                continue
            works[f"{form}, {label}"] = bench.step(model, attention, fused, compiled)
            said[f"{form}, {label}"] = f"attention {backend}"
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 8 * len(works))
    rows = bench.time(works, said)
    for row in rows:
        row["tokens_per_second"] = bench.tokens / row["ms"] * 1e3
        row["mfu"] = operations / row["ms"] * 1e3 / PEAK
    return [*rows, *({"what": note} for note in notes)]


def _kernels(device: torch.device) -> tuple[dict[str, Fused], list[str]]:
    """No kernel, each one that works here, all of them; and a sentence for each that does not."""
    reasons = {name: choice.probe(name, device) for name in choice.MODULES}
    works = [name for name, reason in reasons.items() if not reason]
    alone = {name: choice.select([name], device)[0] for name in works if name != "symmetric"}
    every = choice.select([name for name in works if name != "symmetric"], device)[0] if alone else None
    chosen = {"plain": UNFUSED, **alone, **({"all kernels": every} if every is not None and len(alone) > 1 else {})}
    return chosen, [f"kernel {name} does not work here: {reason}" for name, reason in reasons.items() if reason]


def attention(bench: Bench) -> list[Row]:
    """The same micro-batch over every back end."""
    model, works, missing = bench.model(), {}, []
    for name in attend.BACKENDS:
        try:
            _, function = bench.attention(name)
            work = bench.step(model, function, UNFUSED, not bench.options.eager)
            work()
        except Exception as error:  # one that cannot run must not take the others' figures along
            why = (str(error).splitlines() or [""])[0]
            missing.append({"what": f"attention {name}: not here", "note": f"{type(error).__name__}: {why}"})
            continue
        works[f"attention {name}"] = work
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 8 * len(works))
    rows = bench.time(works)
    for row in rows:
        row["tokens_per_second"] = bench.tokens / row["ms"] * 1e3
    return [*rows, *missing]


def muon(bench: Bench) -> list[Row]:
    """One optimiser step: Muon over all matrices, over an eighth of them as a rank of eight has, and all optimisers."""
    from pgolf.optim.muon import Muon

    model = bench.model()
    optimizers = bench.recipe.optim(model)
    (everything,) = (one for one in optimizers if isinstance(one, Muon))
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    group = everything.param_groups[0]
    form = {**everything.defaults, "newton_schulz": everything.newton_schulz}
    parts = {name: getattr(everything, name) for name in ("gradient", "precondition", "rescale")}
    share = Muon(group["params"][::RANKS], **form, **parts, precision=everything.precision)
    works: dict[str, Work] = {
        "Muon, all matrices": everything.step,
        f"Muon, a rank's share of {RANKS}": share.step,
        "all optimisers": optimizers.step,
    }
    if not choice.probe("symmetric", bench.device):
        plain, fast = (Muon(group["params"], **form, **parts, precision="bf16_fast") for _ in range(2))
        fast.use(choice.module("symmetric").fused)
        works["Muon, all matrices, bf16_fast"] = plain.step
        works["Muon, all matrices, bf16_fast, kernel symmetric"] = fast.step
    return bench.time(works)


def gptq(bench: Bench) -> list[Row]:
    """Hessians of one calibration batch on the device, and quantisation of the whole model with them on the CPU, as in
    a run; beside it the same on the device."""
    from pgolf.quant.hessian import collect_hessians

    model, (_, attention) = bench.model(), bench.attention()

    def forward() -> None:
        with torch.no_grad():
            batch_loss(model, bench.batch, attention, bench.device, bench.length, loss_of)

    held: dict[str, Any] = {}
    shapes = {name: tuple(value.shape) for name, value in model.named_parameters()}
    choices = bench.recipe.quant.chooser.choose(shapes, parameter_roles(model), set())

    def calibrate() -> None:
        held["calibrations"] = collect_hessians(model.calibration_sites(), [forward])

    def quantise(on_cpu: bool) -> None:
        named = dict(model.named_parameters())
        for chosen in choices:
            if (calibration := held["calibrations"].get(chosen.name)) is not None:
                weight = named[chosen.name].detach()
                chosen.scheme.quantise(*(weight.cpu(), calibration.cpu()) if on_cpu else (weight, calibration))

    calibrate()
    repeats, bench.options.repeats = bench.options.repeats, 2
    try:
        works: dict[str, Work] = {
            "Hessians of one batch": calibrate,
            "GPTQ of every matrix, as in a run (CPU)": lambda: quantise(True),
            "GPTQ of every matrix, on the device": lambda: quantise(False),
        }
        return bench.time(works)
    finally:
        bench.options.repeats = repeats


def adaptation(bench: Bench) -> list[Row]:
    """Documents a second of one batch of per-document adapters: forward of a chunk, its score, one step on it."""
    from pgolf.model.context import Context
    from pgolf.ttt.lora import BatchedLora

    strategy = bench.recipe.ttt
    model, lora = bench.model(), strategy.lora
    rows, chunk, length = strategy.rows, strategy.chunks.largest, strategy.context_tokens
    tokens = torch.randint(VOCABULARY, (rows, length + 1), device=bench.device)
    _, attention = bench.attention()
    adapters = BatchedLora(model, rows, lora, 0, "benchmark")
    optimizer = lora.optimizer(list(adapters.parameters()))

    def nats(inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        context = Context(attention, adapters=adapters)
        with model.precision.autocast(inputs.device):
            logits = model.logits(model(inputs, context)[:, -chunk:], context)
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets[:, -chunk:].flatten())

    def work(function: Callable[..., torch.Tensor]) -> Work:
        def once() -> None:
            optimizer.zero_grad(set_to_none=True)
            function(tokens[:, :-1], tokens[:, 1:]).backward()
            optimizer.step()

        return once

    works = {"adapters, eager": work(nats)}
    if not bench.options.eager:
        works["adapters, compiled"] = work(torch.compile(nats))
    found = bench.time(works, dict.fromkeys(works, f"{rows} documents, {chunk} of {length} tokens scored"))
    for row in found:
        row["tokens_per_second"] = rows * chunk / row["ms"] * 1e3
    return found


PARTS: dict[str, Callable[[Bench], list[Row]]] = {
    "steps": steps,
    "attention": attention,
    "muon": muon,
    "gptq": gptq,
    "adaptation": adaptation,
}


def estimate(rows: list[Row], preset: str) -> str | None:
    """What a step of the published runs would take on 8 such GPUs, from the figures of one; None without them."""
    of = {row["what"]: row for row in rows if row["preset"] == preset and "ms" in row}
    best = min((row["ms"] for name, row in of.items() if name.startswith("compiled")), default=None)
    share = of.get(f"Muon, a rank's share of {RANKS}")
    if best is None or share is None:
        return None
    whole = best + share["ms"]
    return (
        f"{preset}: {best:.1f} ms for {BATCH // RANKS:,} tokens and {share['ms']:.1f} ms of Muon, {whole:.1f} ms a "
        f"step of {BATCH:,} tokens on {RANKS} such GPUs if what they send each other is hidden and every step is "
        f"looped (published runs begin at 35 %); published on 8 H100s: {PUBLISHED_STEP}."
    )


def render(facts: dict[str, Any], rows: list[Row], failed: list[str]) -> str:
    """The table as Markdown."""
    ceiling = f", {facts['ceiling_tflops']:.0f} TFLOP/s in a bf16 product of 8192" if facts["ceiling_tflops"] else ""
    parts = [f"# {facts['device']}, {facts['date']}", f"torch {facts['torch']}, triton {facts['triton']}{ceiling}"]
    for preset in dict.fromkeys(row["preset"] for row in rows):
        some = [row for row in rows if row["preset"] == preset]
        parts.append(f"## {preset}\n\n" + markdown_table(HEADERS, [_cells(row) for row in some]))
        if (sentence := estimate(rows, preset)) is not None:
            parts.append(sentence)
    parts += [f"failed: {one}" for one in failed]
    return "\n\n".join(parts) + "\n"


def _cells(row: Row) -> list[str]:
    if "ms" not in row:
        return [row["what"], "", "", "", "", "", row.get("note", "")]
    speed = f"{row['tokens_per_second']:,.0f}" if "tokens_per_second" in row else ""
    mfu = f"{row['mfu']:.1%}" if "mfu" in row else ""
    peak = f"{row['peak_gib']:.1f}" if row["peak_gib"] else ""
    return [row["what"], f"{row['ratio']:.3f}", f"{row['ms']:.2f}", speed, mfu, peak, row["note"]]


def _environment(device: torch.device) -> dict[str, Any]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    try:
        import triton

        version = triton.__version__
    except ImportError:
        version = "not installed"
    slug = "".join(letter if letter.isalnum() else "-" for letter in name.lower()).strip("-")
    date = datetime.date.today().isoformat()
    return {"device": name, "slug": slug, "date": date, "torch": torch.__version__, "triton": version}


def _ceiling(device: torch.device) -> float | None:
    """TFLOP/s of a bf16 product of two random 8192 x 8192 matrices; None on a CPU."""
    if device.type != "cuda":
        return None
    left, right = (torch.randn(8192, 8192, device=device, dtype=torch.bfloat16) for _ in range(2))
    for _ in range(5):
        left @ right
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(20):
        left @ right
    end.record()
    torch.cuda.synchronize()
    return 20 * 2 * 8192**3 / (begin.elapsed_time(end) * 1e-3) / 1e12


def _no_files() -> argparse.Namespace:
    """No configuration beside the shipped one."""
    return argparse.Namespace(config_dir=None, config_path=None, config_name="config")


if __name__ == "__main__":
    sys.exit(main())
