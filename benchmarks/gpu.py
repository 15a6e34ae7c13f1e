"""One GPU, one table: what a rank of the full-size presets does in a training step, and what each kernel brings.

    python benchmarks/gpu.py                                    on a GPU, all of it
    python benchmarks/gpu.py --only steps --presets pr1736      one part, one preset: where a command's time is limited
    python benchmarks/gpu.py --seconds 300                      what has not begun by then is left to the next command
    python benchmarks/gpu.py --device cpu --scale mini --tokens 1024 --repeats 2 --eager     that it runs at all

Parts: steps (forward, loss and backward of one micro-batch: plain operations, each fused kernel alone, all of them;
eager and compiled), attention (every back end that works here), muon (one step over all matrices, and over the share of
one rank of eight), gptq (calibration and quantisation of the whole model), adaptation (a chunk of a batch of adapters,
compiled and not). Weights and text are random: times do not depend on what a model knows. Every ratio is against the
first line of its block, measured in the same process, in turn; medians of --repeats, by device events on a GPU. The
first call of each, which compiles, is a column of its own. MFU is of 989 TFLOP/s (bf16 without sparsity, H100 and
H200); the ceiling measured here stands beside it. What fails, for want of memory too, is a line that says why. Prints
the table and writes benchmarks/results/gpu-<device>-<date>.json and .md after every part. The same command again
measures the blocks that are missing there or not whole, and keeps the others.
"""

import argparse
import datetime
import gc
import statistics
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gpu_table import RANKS, Block, Row, keep, kept, key, measured, render

from pgolf.app.machine import prepare_process

prepare_process()

from pgolf.app import build  # noqa: E402
from pgolf.app.verbs.composing import compose  # noqa: E402
from pgolf.data.loaders import Batch  # noqa: E402
from pgolf.errors import UserError  # noqa: E402
from pgolf.kernels import attend  # noqa: E402
from pgolf.kernels.fused import choice  # noqa: E402
from pgolf.kernels.fused.kernels import UNFUSED, Fused  # noqa: E402
from pgolf.model.flops import flops_per_token  # noqa: E402
from pgolf.model.gpt import GPT  # noqa: E402
from pgolf.model.roles import parameter_roles  # noqa: E402
from pgolf.train.batches import batch_loss  # noqa: E402
from pgolf.train.loss.forward import loss_of  # noqa: E402
from pgolf.train.prepared import _for_any_number_of_documents  # noqa: E402
from pgolf.train.recompiles import graphs  # noqa: E402

BEGUN = time.monotonic()
ROOT = Path(__file__).resolve().parents[1]
PEAK = 989e12  # bf16 operations a second, dense, from the data sheets of H100 and H200
VOCABULARY = 8192
WARMUPS = 3  # calls before the timed ones
RESERVE = 60  # seconds kept for timing what is ready
SETTINGS = ("scale", "tokens", "repeats", "eager")  # what makes figures of one block comparable
Work = Callable[[], object]


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write; the exit status is 1 when a part failed."""
    options = _parser().parse_args(arguments)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError("there is no GPU here; --device cpu --scale mini --tokens 1024 --eager shows that it runs.")
    facts = {**_environment(device), "ceiling_tflops": _ceiling(device)}
    blocks = [] if options.dry else kept(options.out, facts)
    for preset in options.presets:
        bench = Bench(preset, device, options)
        for name in options.only:
            known = next((one for one in blocks if key(one) == (preset, name, bench.settings)), None)
            if known is not None and known["whole"]:
                print(f"{preset} {name}: measured before, kept", flush=True)
                continue
            if time.monotonic() - BEGUN > options.seconds - RESERVE:
                print(f"{preset} {name}: left to the next command (--seconds)", flush=True)
                continue
            block = _measured(bench, name)
            print(f"{preset} {name}: {block['seconds']:.0f} s {block['failed'] or ''}", flush=True)
            if known is None or measured(block) >= measured(known):
                blocks = [one for one in blocks if one is not known] + [block]
            if not options.dry:
                keep(options.out, facts, blocks)
    print(render(facts, blocks))
    return 1 if any(one["failed"] for one in blocks) else 0


def _measured(bench: "Bench", name: str) -> Block:
    """One part for one preset; one that fails must not take the others' figures along."""
    begun, rows, failed = time.monotonic(), [], None
    try:
        rows = PARTS[name](bench)
    except Exception as error:
        failed = f"failed: {_why(error)}"
    free()  # outside, for an error keeps alive what its frames hold
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
    whole = failed is None and not any(row.get("left_out") for row in rows)
    block = {"preset": bench.preset, "part": name, "settings": bench.settings, "seconds": time.monotonic() - begun}
    return {**block, "whole": whole, "failed": failed, "rows": rows}


def _why(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"


def free() -> None:
    """Give the device's memory back that nothing holds."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=["pr1736", "pr1855"], metavar="NAME")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--scale", default="full", choices=("full", "mini", "nano"))
    parser.add_argument(
        "--tokens", type=int, default=98_304, help="of a micro-batch: what each of 8 ranks sees (98304)"
    )
    parser.add_argument("--repeats", type=int, default=20, metavar="N", help="timed calls, after three others (20)")
    parser.add_argument("--only", nargs="+", choices=tuple(PARTS), default=list(PARTS), metavar="PART", help="parts")
    parser.add_argument(
        "--seconds", type=float, default=540.0, help="of this command, after which nothing more is begun (540)"
    )
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
        documents = bounds.diff().double()
        self.seen = round(float(documents.square().sum() / documents.sum()))  # length of a token's document, mean
        self.settings = {name: getattr(options, name) for name in SETTINGS}

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
        loss: Callable[..., Any] = loss_of
        if compiled:  # as in a run
            loss = _for_any_number_of_documents(torch.compile(_with_code_of_its_own(loss_of)))

        def work() -> None:
            model.zero_grad(set_to_none=True)
            found, _ = batch_loss(model, self.batch, attention, self.device, self.length, loss, fused=fused)
            found.backward()

        return work

    def time(
        self, works: dict[str, Work], notes: dict[str, str] | None = None, warmups: int = WARMUPS, most: int = 1000
    ) -> list[Row]:
        """Median milliseconds and peak memory of each, the calls of all in turn, `most` at the most; a line that says
        why for each that fails, and for each that there is no time to begin."""
        rows: dict[str, Row] = {name: {"what": name, "note": (notes or {}).get(name, "")} for name in works}
        ready = {name: work for name, work in works.items() if self._warmed(rows[name], work, rows, warmups)}
        times: dict[str, list[float]] = {name: [] for name in ready}
        before = graphs()
        for turn in range(min(self.options.repeats, most)):
            if turn > 2 and self._left() < RESERVE / 3:
                break
            for name in list(ready):
                taken = self._tried(rows[name], lambda name=name: self._once(ready[name]))
                if taken is None:
                    del ready[name]
                    continue
                times[name].append(taken[0])
                rows[name]["peak_gib"] = max(taken[1], rows[name].get("peak_gib", 0.0))
        medians = {name: statistics.median(times[name]) for name in ready}
        for name, median in medians.items():
            some = times[name]
            rows[name] |= {"ratio": next(iter(medians.values())) / median, "ms": median, "calls": len(some)}
            rows[name]["quartiles_ms"] = statistics.quantiles(some, n=4) if len(some) > 1 else [median] * 3
        if graphs() > before:
            again = {
                "what": f"{graphs() - before} graphs were compiled while calls were timed",
                "note": "figures above",
            }
            return [*rows.values(), again]
        return list(rows.values())

    def _warmed(self, row: Row, work: Work, rows: dict[str, Row], warmups: int) -> bool:
        """Call it a few times, the first time by the clock. False where that fails or there is no time for it."""
        longest = max(one.get("first_seconds", 0.0) for one in rows.values())
        if self._left() < RESERVE + longest:
            row |= {"note": "not measured: no time was left (--seconds)", "left_out": True}
            return False
        before = graphs()

        def first() -> float:
            begun = time.monotonic()
            work()
            self._wait()
            row["first_seconds"] = time.monotonic() - begun
            for _ in range(warmups - 1):
                work()
            self._wait()
            return 1.0

        done = self._tried(row, first) is not None
        made = graphs() - before
        told = f"first call {row['first_seconds']:.1f} s, {made} graphs" if done else row["note"]
        print(f"  {self.preset}, {row['what']}: {told}", flush=True)
        if done and made:
            row["note"] += f"{', ' if row['note'] else ''}{made} graph{'s' if made > 1 else ''}"
        return done

    def _tried(self, row: Row, call: Callable[[], Any]) -> Any:
        """What a call gives; None, and the reason in its line, where it fails."""
        try:
            return call()
        except Exception as error:  # whatever a kernel, a compiler or a full memory may raise
            row["note"] = f"failed: {_why(error)}"
        row.pop("peak_gib", None)
        free()
        return None

    def _left(self) -> float:
        """Seconds that this command has left."""
        return float(self.options.seconds) - (time.monotonic() - BEGUN)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

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


def _with_code_of_its_own(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function. Compiled graphs are kept by code and searched in turn at every call: a run has one or two of
    them, and its calls do not wait while those of other variants are ruled out."""
    assert isinstance(function, types.FunctionType)
    return types.FunctionType(
        *(function.__code__.replace(), function.__globals__, function.__name__),
        *(function.__defaults__, function.__closure__),
    )


def steps(bench: Bench) -> list[Row]:
    """A micro-batch with plain operations, with each kernel alone and with all; eager and compiled."""
    model, (backend, attention) = bench.model(), bench.attention()
    operations = flops_per_token(model, model.plan, bench.seen).training * bench.tokens
    chosen, notes = _kernels(bench.device)
    works: dict[str, Work] = {}
    for label, fused in chosen.items():  # what matters most comes first: there may not be time for all
        for compiled in [False] if bench.options.eager else [True, False]:
            if compiled or label in ("plain", "all kernels"):
                form = "compiled" if compiled else "eager"
                works[f"{form}, {label}"] = bench.step(model, attention, fused, compiled)
    rows = bench.time(works, dict.fromkeys(works, f"attention {backend}"))
    for row in rows:
        if "ms" in row:
            row["tokens_per_second"] = bench.tokens / row["ms"] * 1e3
            row["mfu"] = operations / row["ms"] * 1e3 / PEAK
    return [*rows, *({"what": note} for note in notes)]


def _kernels(device: torch.device) -> tuple[dict[str, Fused], list[str]]:
    """No kernel, all that work here, each of them; and a sentence for each that does not."""
    reasons = {name: choice.probe(name, device) for name in choice.MODULES}
    works = [name for name, reason in reasons.items() if not reason and name != "symmetric"]
    fields = {name: choice.module(name).fused for name in works}
    every = {"all kernels": Fused(**fields)} if len(works) > 1 else {}
    alone = {name: Fused(**{name: kernel}) for name, kernel in fields.items()}
    notes = [f"kernel {name} does not work here: {reason}" for name, reason in reasons.items() if reason]
    return {"plain": UNFUSED, **every, **alone}, notes


def attention(bench: Bench) -> list[Row]:
    """The same micro-batch over every back end."""
    model, missing = bench.model(), []
    works: dict[str, Work] = {}
    for name in attend.BACKENDS:
        try:
            _, function = bench.attention(name)
        except UserError as error:
            missing.append({"what": f"attention {name}: not here", "note": str(error).splitlines()[0]})
            continue
        works[f"attention {name}"] = bench.step(model, function, UNFUSED, not bench.options.eager)
    rows = bench.time(works)
    for row in rows:
        if "ms" in row:
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
    share = Muon(share_of(group["params"]), **form, **parts, precision=everything.precision)
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


def share_of(matrices: list[torch.nn.Parameter]) -> list[torch.nn.Parameter]:
    """What one rank of RANKS owns: of n matrices of a shape n / RANKS, rounded up (pgolf.optim.banks)."""
    by_shape: dict[torch.Size, list[torch.nn.Parameter]] = {}
    for matrix in matrices:
        by_shape.setdefault(matrix.shape, []).append(matrix)
    return [one for same in by_shape.values() for one in same[: -(-len(same) // RANKS)]]


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

    works: dict[str, Work] = {
        "Hessians of one batch": calibrate,
        "GPTQ of every matrix, as in a run (CPU)": lambda: quantise(True),
        "GPTQ of every matrix, on the device": lambda: quantise(False),
    }
    return bench.time(works, warmups=1, most=2)  # seconds each, and nothing compiles


def adaptation(bench: Bench) -> list[Row]:
    """Documents a second of one batch of per-document adapters: forward of a chunk, its score, one step on it."""
    from pgolf.model.context import Context
    from pgolf.ttt.forward import Forward, compiled, log_probs_at
    from pgolf.ttt.lora import BatchedLora

    strategy = bench.recipe.ttt
    model, lora = bench.model().requires_grad_(False), strategy.lora
    rows, chunk, length = strategy.rows, strategy.chunks.largest, strategy.context_tokens
    tokens = torch.randint(VOCABULARY, (rows, length + 1), device=bench.device)
    _, attention = bench.attention()
    adapters = BatchedLora(model, rows, lora, 0, "benchmark")
    optimizer = lora.optimizer(list(adapters.parameters()))

    columns = torch.arange(length - chunk, length, device=bench.device).expand(rows, chunk)
    inputs, targets = tokens[:, :-1], tokens[:, length - chunk + 1 :, None]

    def work(forward: Forward) -> Work:
        def once() -> None:
            optimizer.zero_grad(set_to_none=True)
            with model.precision.autocast(bench.device):
                found = forward(model, inputs, columns, Context(attention, adapters=adapters.rows(0, rows)))
            (-found.gather(-1, targets).mean(dim=1).sum()).backward()
            optimizer.step()

        return once

    works = {"adapters, as written": work(log_probs_at)}
    if not bench.options.eager:
        works["adapters, compiled (compile_scoring=true)"] = work(compiled())
    found = bench.time(works)
    for row in (one for one in found if "ms" in one):
        row["tokens_per_second"] = rows * chunk / row["ms"] * 1e3
        # windows grow to `length`; here all are that long, so a run is faster
        row["documents_per_second"] = rows / (-(-length // chunk) * row["ms"]) * 1e3
        told = f"{rows} documents, {chunk} of {length} tokens scored; {row['documents_per_second']:.2f} documents/s"
        row["note"] = f"{told}, each of {length} tokens with whole windows" + f"; {row['note']}" * bool(row["note"])
    return found


PARTS: dict[str, Callable[[Bench], list[Row]]] = {
    "steps": steps,
    "attention": attention,
    "muon": muon,
    "gptq": gptq,
    "adaptation": adaptation,
}


def _environment(device: torch.device) -> dict[str, Any]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    try:
        import triton

        version = triton.__version__
    except ImportError:
        version = "not installed"
    slug = "".join(letter if letter.isalnum() else "-" for letter in name.lower()).strip("-")
    date = datetime.date.today().isoformat()
    versions = {"torch": torch.__version__, "cuda": torch.version.cuda, "triton": version}
    return {"device": name, "slug": slug, "date": date, **versions}


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
