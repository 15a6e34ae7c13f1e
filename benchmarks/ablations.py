"""One factor at a time: every option of the configuration against the same baseline, over seeds.

    python benchmarks/ablations.py run          the sweep: base, options that train, then options of quantisation and
                                                evaluation on the base's weights; issued again, it goes on
    python benchmarks/ablations.py seconds      ratios of seconds, side by side: for an idle machine
    python benchmarks/ablations.py report       docs/ablations.md and .png, benchmarks/results/ablations.json

The base is the default recipe at scale=nano without test-time training; options of `ttt` are compared with ttt=lora and
those of its experts with the base itself, as `against` says below. What is run and in which order is `studies()`; the
runs land below multirun/ablations, with the register of all that were started. Intervals are 95 %.
"""

import argparse
import fnmatch
import multiprocessing
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path

from pgolf.app.compose import composer, config_directory
from pgolf.app.heads import company
from pgolf.digest import digest
from pgolf.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "multirun" / "ablations"
SECONDS = ROOT / "benchmarks" / "results" / "ablations-seconds.json"
SEEDS, BASE_SEEDS = (42, 0, 1234), (42, 0, 1234, 1, 2, 3)
BASE = ("scale=nano", "ttt=none")
TRAINED, REQUANTISED, SCORED = "trained", "requantised", "scored again"
KIND_OF_ROOT = {"model": TRAINED, "optim": TRAINED, "train": TRAINED, "quant": REQUANTISED, "ttt": SCORED}
SELF_TRAINED = ("quant/qat",)  # groups of quant that act in training
LEFT_OUT = {  # groups and single options
    "train/early_stop": "ends runs, changes none",
    "model/precision": "the same numbers on a CPU",
    "optim/mup": "the same numbers at the base width",
    "quant/scheme": "below, for the matrices",
    "train/diagnostics": "watches and changes nothing",
    "train/warmup": "forgets all but the compiled code",
    "train/batch=growing": "below, with smaller micro-batches",
    "quant=ternary_mlp": "quant/qat=ternary, which needs it",
    "train/clip=local_norm": "the same in one process",
    "model/matrix_init=orthogonal_depth": "the same where output projections start at zero",
    "quant/pruning=selective": "acts with a target_bytes alone",
    "train/loader=shuffled_sequence": "the same batches in one process",
}


@dataclass(frozen=True)
class Study:
    """One option: the overrides that choose it, over those of the base.

    name: what the catalogue calls it; kind: what has to be done again; against: name of the study that it is compared
    with; needs: overrides without which the option cannot act, which `against` has too.
    """

    name: str
    kind: str
    overrides: tuple[str, ...]
    against: str = "base"
    needs: tuple[str, ...] = field(default=())

    @property
    def folder(self) -> str:
        """A file name of its own."""
        return "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in self.name)


def studies(only: Sequence[str] = ("*",)) -> list[Study]:
    """Base first, then every option of every group that is not the base's own choice, then single settings; of these
    the ones whose name matches one of the globs `only`."""
    return [one for one in (Study("base", TRAINED, ()), *of_groups(only), *SETTINGS) if matches(one.name, only)]


def matches(name: str, only: Sequence[str]) -> bool:
    """Whether one of the globs fits."""
    return any(fnmatch.fnmatch(name, glob) for glob in only)


def of_groups(only: Sequence[str]) -> Iterator[Study]:
    """What the groups offer, as far as it matches: to compose them all takes more than a minute."""
    with composer() as made:
        chosen = made.jobs(list(BASE), False)[0]
        for group, names in made.groups().items():
            root = group.partition("/")[0]
            if root not in KIND_OF_ROOT or group in LEFT_OUT:
                continue
            key = made.placed(group)
            for name in names:
                file = config_directory() / group / f"{name}.yaml"
                if not file.is_file() or f"{group}={name}" in LEFT_OUT:
                    continue
                if not matches(f"{key}={name}", only):
                    continue
                overrides = (f"{key}={name}", *company(file))
                kind = TRAINED if group in SELF_TRAINED or overrides[1:] else KIND_OF_ROOT[root]
                job = made.jobs([*BASE, *overrides], False)[0]
                if job.unresolved or job.refusals or digest(job.config) == digest(chosen.config):
                    continue
                yield Study(overrides[0], kind, overrides)


SCHEMES = ("int8_rows", "percentile", "percentile_gptq", "gptq_hessian_clip", "float8", "ternary", "binary")
SETTINGS: tuple[Study, ...] = (
    *(
        Study(f"quant/scheme@quant.matrix={name}", REQUANTISED, (f"quant/scheme@quant.matrix={name}",))
        for name in SCHEMES
    ),
    *(Study(f"quant.matrix.bits={bits}", REQUANTISED, (f"quant.matrix.bits={bits}",)) for bits in (3, 4, 5, 8)),
    Study("model.depth.num_loops=0", TRAINED, ("model.depth.num_loops=0",)),
    Study("train/batch=growing", TRAINED, ("train/batch=growing", "train.micro_batch_tokens=512")),
    Study("train.loop_at=0.0", TRAINED, ("train.loop_at=0.0",)),
    Study("model.layer_scale=false", TRAINED, ("model.layer_scale=false",)),
    Study("model.skip_gates=false", TRAINED, ("model.skip_gates=false",)),
    Study("optim.matrix.row_normalise=false", TRAINED, ("optim.matrix.row_normalise=false",)),
    Study("optim.matrix.coefficients=stock", TRAINED, ("optim.matrix.coefficients=stock",)),
)


def run(chosen: list[Study], jobs: int) -> int:
    """Do what is not done yet; gives the exit status. Workers stay, so that a run pays for no new interpreter."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    os.environ["OMP_NUM_THREADS"] = "1"
    base = [study for study in chosen if study.name == "base"]
    trained = [study for study in chosen if study.kind == TRAINED and study not in base]
    others = [study for study in chosen if study.kind != TRAINED]
    failed = 0
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        for make, some in ((training, base), (training, trained), (again, others)):
            waiting = {pool.submit(carry_out, make(study), study.folder): study for study in some}
            for done, future in enumerate(as_completed(waiting), 1):
                study, status = waiting[future], future.result()
                failed += status != 0
                print(f"{done}/{len(some)} {study.kind}: {study.name}{'' if status == 0 else ' FAILED'}", flush=True)
    return 1 if failed else 0


def training(study: Study) -> list[list[str]]:
    """The command that trains a study over its seeds."""
    seeds = ",".join(map(str, BASE_SEEDS if study.name == "base" else SEEDS))
    words = ["--multirun", f"seed={seeds}", f"name={study.folder}", *BASE, *study.needs, *study.overrides]
    return [[*words, f"hydra.sweep.dir={FOLDER}"]]


def again(study: Study) -> list[list[str]]:
    """The commands that quantise or score the base's runs again."""
    return [["eval", f"run={directory}", *study.needs, *study.overrides] for directory in base_runs()]


def carry_out(commands: list[list[str]], log: str) -> int:
    """`pgolf` commands in this process, their output in a file; gives the exit status of the first that fails."""
    from pgolf.app.machine import prepare_process

    prepare_process()
    from pgolf.app import cli

    os.chdir(ROOT)
    with (FOLDER / f"{log}.log").open("w") as file, redirect_stdout(file), redirect_stderr(file):
        for words in commands:
            sys.argv = ["pgolf", *words]
            try:
                cli.main()
            except SystemExit as end:
                if end.code:
                    return int(end.code)
    return 0


def base_runs() -> list[Path]:
    """The directories of the base's runs of SEEDS."""
    return [next(FOLDER.glob(f"base-*-seed{seed}")) for seed in SEEDS]


def main(arguments: list[str] | None = None) -> int:
    """Run or report; gives the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "seconds", "report", "list"))
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="runs at a time, one core each (2)")
    parser.add_argument("--only", default=["*"], nargs="+", metavar="GLOB", help="studies whose name matches one")
    options = parser.parse_args(arguments)
    chosen = studies(options.only)
    if options.what == "list":
        for study in chosen:
            print(f"{study.kind:<13} {study.name}  {' '.join(study.needs)}")
        return 0
    if options.what == "run":
        return run(chosen, options.jobs)
    if options.what == "seconds":
        from ablations_seconds import measure  # beside this file

        os.environ["OMP_NUM_THREADS"] = "1"
        return measure(chosen, base_runs()[0], SECONDS, options.jobs)
    from ablations_report import write  # beside this file

    return write(studies(), FOLDER, SECONDS)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"ablations: {error}")
