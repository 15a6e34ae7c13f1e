"""Write docs/techniques.md: every option of every group, from conf/, the docstrings and the published records.

What an option does and where it comes from is the comment at the head of its YAML file and the docstring of its class;
its cost is that of the full-size default model with the option, against the same without; the published column names
the records whose presets choose it; the measured column is `benchmarks/results/ablations.json`, where that has it.

  python scripts/catalogue.py            write docs/techniques.md
  python scripts/catalogue.py --check    exit status 1 when it is out of date
"""

import argparse
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pgolf.app import build
from pgolf.app.compose import Composer, Job, composer, config_directory
from pgolf.app.heads import head_comment
from pgolf.files import write_bytes
from pgolf.model.flops import flops_per_token
from pgolf.model.roles import parameter_roles
from pgolf.report.catalogue import Catalogue, load_catalogue
from pgolf.report.presets import preset_directory, read_presets
from pgolf.report.tables import markdown_table

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "techniques.md"
ABLATIONS = ROOT / "benchmarks" / "results" / "ablations.json"
FULL = ["scale=full", "data=fineweb_sp8192_caseops"]
PARTS = {
    "model": "Architecture",
    "optim": "Optimisers",
    "train": "Training",
    "quant": "Quantisation",
    "ttt": "Evaluation and test-time training",
    "data": "Data",
}
COSTLY = ("model", "quant")  # groups whose options change parameters or bytes
HEADERS = [
    "option",
    "what it does",
    "class",
    "parameters",
    "estimated bytes",
    "operations a token",
    "chosen by",
    "published",
    "here",
]
PUBLISHED = " Published effect: "  # the last sentence of a file's head, where there is one
LEAD = """\
# Techniques

Every option of every group, made from the configuration files by `python scripts/catalogue.py`. `key=value` goes on
the command line as it stands. *parameters*, *estimated bytes* and *operations a token* (forward, after recurrence has
started) are the change from the group's default in the frontier model at full size; empty where an option is no part
of the model. *chosen by*: the presets of published results that choose it (`pgolf records NAME` has their figures;
**bold**: numbers of their own script are reproduced, see `scripts/parity.py`). *published*: the effect that an author
reports for the option alone, bits per byte, negative is better; most records changed several things at once, and then
there is none. *here*: the effect that was measured with this code at a small scale, with its 95 % interval over seeds
(`docs/ablations.md` has more, and the noise).
"""


@dataclass(frozen=True)
class Option:
    """One option of a group. key: what chooses it; job: at full scale, where it costs parameters or bytes; text: what
    its file says; published: the effect that its file reports."""

    group: str
    name: str
    key: str
    job: Job | None
    text: str
    published: str = ""

    @property
    def title(self) -> str:
        """What one types."""
        return f"{self.key}={self.name}"


def main(arguments: list[str] | None = None) -> int:
    """Write or check the document; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; 1 when the document is out of date")
    check = parser.parse_args(arguments).check
    content = document()
    if check:
        current = DOCUMENT.is_file() and DOCUMENT.read_text("utf-8") == content
        print("docs/techniques.md is current." if current else "docs/techniques.md is out of date: run this script.")
        return 0 if current else 1
    write_bytes(DOCUMENT, content.encode())
    print(f"wrote {DOCUMENT}")
    return 0


def document() -> str:
    """The whole page."""
    with composer() as made:
        options = list(every_option(made))
        chosen = presets_by_option(made, {option.group for option in options})
        costs = Costs(made.jobs(FULL, False)[0])
        catalogue, measured = load_catalogue(), ablations()
        parts = [LEAD.rstrip()]
        for root, heading in PARTS.items():
            parts.append(f"## {heading}")
            for group in dict.fromkeys(one.group for one in options if one.group.partition("/")[0] == root):
                members = [one for one in options if one.group == group]
                rows = [row(one, costs, chosen, catalogue, measured) for one in members]
                parts.append(f"### `{members[0].key}`\n\n{markdown_table(HEADERS, rows, left=3)}")
    return "\n\n".join(parts) + "\n"


def every_option(made: Composer) -> Iterator[Option]:
    """Every option of the groups in PARTS but the absent ones, in the order of the groups."""
    for group, names in made.groups().items():
        if group.partition("/")[0] not in PARTS:
            continue
        key = made.placed(group)
        for name in names:
            path = config_directory() / group / f"{name}.yaml"
            if name != "none" and path.is_file():
                costly = group.partition("/")[0] in COSTLY
                job = made.jobs([*FULL, f"{key}={name}"], False)[0] if costly else None
                yield Option(group, name, key, job, *head_comment(path).partition(PUBLISHED)[::2])


def presets_by_option(made: Composer, groups: set[str]) -> dict[tuple[str, str], list[str]]:
    """(group, option) -> the presets in whose composed configuration the group has that option."""
    found: dict[tuple[str, str], list[str]] = {}
    for name in read_presets(preset_directory()):
        composed = made.hydra.compose_config(made.config_name, [f"experiment={name}"], made_mode())
        for key, value in composed.hydra.runtime.choices.items():
            group = str(key).partition("@")[0]
            if group in groups:
                for one in value if isinstance(value, list | tuple) else [value]:
                    found.setdefault((group, str(one)), []).append(name)
    return found


def made_mode() -> Any:
    """Hydra's mode of a single run."""
    from hydra.types import RunMode

    return RunMode.RUN


class Costs:
    """Parameters, estimated bytes and operations of the full-size model of a job, as changes from a base."""

    def __init__(self, base: Job) -> None:
        self.base = self._of(base)

    def change(self, option: Option) -> list[str]:
        """Three cells; empty ones where nothing of the model, or nothing of the bytes, is chosen."""
        if option.job is None:
            return ["", "", ""]
        if option.job.unresolved or option.job.refusals:
            return ["needs more settings", "", ""]
        now = self._of(option.job)
        cells = [f"{after - before:+,}" for before, after in zip(self.base, now, strict=True)]
        return cells if option.group.startswith("model") else ["", cells[1], ""]

    def _of(self, job: Job) -> tuple[int, int, int]:
        recipe = build.recipe(job.config)
        with torch.device("meta"):
            model = recipe.model(recipe.data.vocab_size, job.config["seed"])
        shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
        size = sum(line["estimated_bytes"] for line in recipe.quant.estimate(shapes, parameter_roles(model)))
        plan = list(model.plans.values())[-1]
        length = int(job.config["train"]["sequence_tokens"])
        parameters = sum(value.numel() for value in model.parameters())
        return parameters, size, round(flops_per_token(model, plan, length).forward)


def row(
    option: Option,
    costs: Costs,
    chosen: dict[tuple[str, str], list[str]],
    catalogue: Catalogue,
    measured: dict[str, Any],
) -> list[str]:
    """The cells of one option."""
    presets = chosen.get((option.group, option.name), [])
    named = [f"**{name}**" if catalogue.evidence(name) else name for name in presets]
    every = len(presets) > 12
    return [
        f"`{option.title}`",
        option.text,
        f"`{target(option)}`",
        *costs.change(option),
        f"{len(presets)} presets" if every else ", ".join(named),
        option.published,
        effect(measured.get(option.title)),
    ]


def target(option: Option) -> str:
    """The class behind an option, without the project's name."""
    text = (config_directory() / option.group / f"{option.name}.yaml").read_text("utf-8")
    found = re.search(r"^_target_: *pgolf\.(\S+)", text, re.M)
    return found.group(1) if found else "-"


def effect(entry: dict[str, Any] | None) -> str:
    """The measured change of an option with its interval and the number of seeds."""
    if entry is None:
        return ""
    return f"{entry['change_bpb']:+.4f} ({entry['low']:+.4f} .. {entry['high']:+.4f}, n={entry['seeds']})"


def ablations() -> dict[str, Any]:
    """Measured effects by option, empty before there are any."""
    return dict(json.loads(ABLATIONS.read_text("utf-8"))["options"]) if ABLATIONS.is_file() else {}


if __name__ == "__main__":
    sys.exit(main())
