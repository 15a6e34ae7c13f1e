"""The result of a run as tables: bits per byte, the artifact, seconds, validity, samples."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from pgolf.app.console import Screen

STAGES = (
    ("pre_quant", "before quantisation"),
    ("post_quant", "after quantisation"),
    ("final", "final, as evaluated"),
)
BASELINES = (
    ("unigram", "unigram entropy of the tokens"),
    ("brotli", "brotli-11"),
    ("xz", "xz"),
    ("xz_primed", "xz primed with training text"),
)
COLOURS = {"pass": "green", "fail": "bold red", "allowed": "yellow", "not probed": "yellow"}
SAMPLE_LINES = 6


def line(summary: dict[str, Any]) -> str:
    """The result in one line."""
    artifact = summary["artifact"]
    fits = "fits" if artifact["fits"] else "DOES NOT FIT"
    invalid = "" if summary["audit"]["verdict"] == "pass" else ", INVALID: the audit failed"
    return f"{_result(summary)}, {artifact['total_bytes']:,} bytes ({fits}){invalid}"


def _result(summary: dict[str, Any]) -> str:
    """val_bpb, or why there is none."""
    if summary["val_bpb"] is not None:
        return f"val_bpb {summary['val_bpb']:.5f}"
    coverage = summary["stages"]["final"]["coverage"]
    return (
        f"NO SCORE of the validation text ({coverage['policy']}: {coverage['documents']} of "
        f"{coverage['num_documents']} documents scored)"
    )


def show(summary: dict[str, Any], screen: "Screen") -> None:
    """The tables on the screen."""
    screen.tables(_parts(summary))


def _parts(summary: dict[str, Any]) -> Iterator[Table | Text]:
    yield _bits(summary)
    yield _artifact(summary["artifact"])
    yield _seconds(summary)
    if summary.get("limits"):
        yield _limits(summary["limits"])
    yield audit_table(summary["audit"])
    yield from _samples(summary.get("samples") or [])
    yield Text.assemble("\nrun directory  ", (str(summary["run_directory"]), "bold"))


def _bits(summary: dict[str, Any]) -> Table:
    table = Table(title="Validation text, bits per byte (lower is better)")
    table.add_column("what", min_width=30)
    table.add_column("BPB", justify="right")
    table.add_column("change", justify="right")
    table.add_column("loss (nats)", justify="right")
    previous: float | None = None
    for key, title in STAGES:
        stage = summary["stages"].get(key)
        if stage is None:
            continue
        bpb = float(stage["val_bpb"])
        change = "" if previous is None else f"{bpb - previous:+.5f}"
        style = "bold green" if key == "final" else ""
        if stage.get("coverage", {}).get("left_out"):
            title, style = f"{title}: PART OF THE TEXT ({stage['coverage']['policy']})", "bold red"
        table.add_row(Text(title, style), Text(f"{bpb:.5f}", style), change, f"{stage['val_loss']:.5f}")
        previous = bpb
    table.add_section()
    for key, title in BASELINES:
        value = (summary.get("baselines") or {}).get(key)
        if value is not None:
            table.add_row(Text(title, "dim"), Text(f"{value:.5f}", "dim"), "", "")
    return table


def _artifact(artifact: dict[str, Any]) -> Table:
    """Weights and code against the limit, a column for each reading of what counts as code."""
    reading = artifact.get("reading", "shipped")
    readings = {reading: artifact, **artifact.get("readings", {})}
    table = Table(title="Artifact, bytes on disk")
    table.add_column("part", min_width=30)
    for name in readings:
        table.add_column(f"code {name}{' (decides)' if name == reading else ''}", justify="right")
    table.add_row("compressed weights", *[f"{artifact['weight_bytes']:,}"] * len(readings))
    table.add_row("code", *(f"{one['code_bytes']:,}" for one in readings.values()))
    table.add_section()
    table.add_row("total", *(Text(f"{one['total_bytes']:,}", "bold") for one in readings.values()))
    table.add_row("limit", *[f"{artifact['limit_bytes']:,}"] * len(readings))
    margins = [artifact["limit_bytes"] - one["total_bytes"] for one in readings.values()]
    table.add_row("margin", *(f"{margin:,}" for margin in margins))
    verdicts = [Text("fits", "bold green") if margin >= 0 else Text("DOES NOT FIT", "bold red") for margin in margins]
    table.add_row("", *verdicts)
    for saving in artifact.get("savings", []):
        table.add_row(Text(f"would save: {saving['change']}"), f"{saving['bytes']:,}")
    return table


def over_the_limit(account: dict[str, Any]) -> str | None:
    """A sentence with the numbers and the savings when a run does not fit; None when it does."""
    if account["fits"]:
        return None
    reading = account.get("reading", "shipped")
    sentence = (
        f"over the limit by {-account['margin_bytes']:,} bytes: weights {account['weight_bytes']:,} + code "
        f"{account['code_bytes']:,} ({reading}) = {account['total_bytes']:,} > {account['limit_bytes']:,}"
    )
    listed = [
        f"{one['change']} ({'' if one['exact'] else 'about '}{one['bytes']:,} bytes)"
        for one in account.get("savings", [])
    ]
    room = account["limit_bytes"] - account["code_bytes"]
    if listed:
        sentence += f". The largest savings at hand: {'; '.join(listed)}"
    return f"{sentence}. quant.target_bytes={max(1, room)} chooses the steps that fit."


def _seconds(summary: dict[str, Any]) -> Table:
    table = Table(title="Time")
    table.add_column("stage", min_width=30)
    table.add_column("seconds", justify="right")
    for stage, seconds in (summary.get("seconds") or {}).items():
        table.add_row(stage, f"{seconds:,.1f}")
    train = summary.get("train")
    if train:
        table.caption = f"{train['steps']:,} steps over {train['tokens']:,} tokens"
        table.caption_justify = "left"
    return table


def _limits(limits: dict[str, dict[str, Any]]) -> Table:
    """Both readings of the time rules."""
    table = Table(title="Time limits, both readings")
    table.add_column("reading", min_width=30)
    for column in ("seconds", "limit"):
        table.add_column(column, justify="right")
    table.add_column("verdict")
    for name, one in limits.items():
        verdict = Text("within", "green") if one["within"] else Text("OVER", "bold red")
        seconds = f"{one['seconds']:,.1f}"
        table.add_row(name.replace("_", " "), seconds, f"{one['limit']:,.1f}", verdict)
    return table


def audit_table(audit: dict[str, Any]) -> Table:
    """Verdict, checks, and on what they were probed."""
    verdict = str(audit["verdict"])
    title = Text.assemble("Validity: ", (verdict, COLOURS.get(verdict, "")))
    table = checks(audit["checks"], title)
    table.caption = f"probed on {audit['scope']}" if audit.get("scope") else None
    return table


def checks(found: list[dict[str, Any]], title: Text) -> Table:
    """A table of validity checks: largest is the largest deviation seen, null the one when nothing is changed."""
    table = Table(title=title)
    for column in ("check", "verdict", "probed", "largest", "null", "detail"):
        table.add_column(column, justify="right" if column in ("probed", "largest", "null") else "left")
    for check in found:
        verdict = str(check["verdict"])
        table.add_row(
            f"{check['id']} {check['name']}",
            Text(verdict.upper() if verdict == "not probed" else verdict, COLOURS.get(verdict, "")),
            _figure(check.get("probed")),
            _figure(check.get("largest")),
            _figure(check.get("null")),
            Text(str(check.get("detail") or "")),
        )
    return table


def self_test_table(result: dict[str, Any]) -> Table:
    """Every specimen of the audit's self-test: the check that must catch it, those that did, and whether that is
    right."""
    verdict = str(result["verdict"])
    table = Table(title=Text.assemble("Self-test of the audit: ", (verdict, COLOURS.get(verdict, ""))))
    for column in ("specimen", "expected check", "caught by", "verdict"):
        table.add_column(column)
    for one in result["specimens"]:
        right = "pass" if one["right"] else "fail"
        expected = one["expected"] or "none: it is legal"
        table.add_row(one["name"], expected, " ".join(one["caught"]) or "-", Text(right, COLOURS[right]))
    return table


def _samples(samples: list[dict[str, str]]) -> Iterator[Text]:
    if samples:
        yield Text("\nThe model continues:", "bold")
    for sample in samples:
        lines = f"{sample['prompt']}\0{sample['text']}".splitlines()[:SAMPLE_LINES]
        prompt, _, text = "\n".join(f"  {one}" for one in lines).partition("\0")
        yield Text.assemble((prompt, "bold cyan"), _printable(text))


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() or letter == "\n" else "?" for letter in text)


def _figure(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)
