"""`pgolf data prepare|verify|stats|train-tokenizer|download`: corpora on disk."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pgolf.app import build
from pgolf.app.console import Screen
from pgolf.app.verbs.composing import compose, parser, refuse_words, take
from pgolf.errors import ConfigError, UserError

DESCRIPTION = """\
  prepare [docs=FILE] [overrides]       gather documents, train the tokenizer, write shards; continues where it stopped
  verify [DIR] [overrides]              compute again all that the manifest says; with overrides, whether the data are
                                        what that configuration asks for
  stats [DIR | overrides] [out=FOLDER]  documents, tokens, bytes, lengths (with a plot), most frequent tokens
  train-tokenizer out=FILE [docs=FILE] [overrides]   train the configuration's tokenizer on its training documents
  download data=NAME [--train-shards N] fetch published shards, tokenizer and byte counts; continues where it stopped,
                                        and with a larger N fetches the rest alone

docs=FILE stands for data=docs data.source.paths=[FILE]: the published preparation (first 50,000 documents validation).
Files: .jsonl with a "text" per line, .txt (one document each), both also .gz and .zst, .parquet; folders of them.

examples:
  pgolf data prepare data=pydocs
  pgolf data prepare docs=docs.jsonl data/transform=caseops
  pgolf data prepare docs=docs.jsonl.zst data/tokenizer=file data.tokenizer.path=my.model
  pgolf data prepare data=text data.source.paths=[notes,more.jsonl.gz] data.workers=4
  pgolf data train-tokenizer out=my.model docs=docs.jsonl data/transform=caseops
  pgolf data download data=fineweb_sp8192_caseops --train-shards 40 paths.data=/data
  pgolf data verify datasets/pydocs-0123456789ab
  pgolf data stats docs=docs.jsonl out=figures"""

BAR = 40  # characters of the longest bar


def main(arguments: list[str]) -> int:
    """Run the verb; gives the exit status."""
    made = parser("data", DESCRIPTION, "prepare|verify|stats|train-tokenizer|download [DIR] [key=value ...]")
    made.add_argument("--train-shards", type=int, metavar="N", help="download: the same as data.train_shards=N")
    options = made.parse_intermixed_args(arguments)  # --train-shards may stand among the words
    action = options.words[0] if options.words else None
    if action not in ACTIONS:
        raise UserError(f"pgolf data needs one of {', '.join(ACTIONS)}; `pgolf data --help` says what they do.")
    if options.train_shards is not None and action != "download":
        raise UserError(f"--train-shards belongs to `pgolf data download`; `pgolf data {action}` does not take it.")
    return ACTIONS[action](with_docs(options.words[1:]), options)


def with_docs(words: list[str]) -> list[str]:
    """`docs=FILE` (or `docs=[FILE,FILE]`) written out as the overrides that it stands for."""
    named, rest = take(words, "docs")
    if named is None:
        return words
    if any(word.startswith("data=") for word in rest):
        raise ConfigError(
            ["docs=FILE stands for data=docs: leave out data=..., or name the files with data.source.paths"]
        )
    listed = named if named.startswith("[") else "['" + named.replace("\\", "\\\\").replace("'", "\\'") + "']"
    return ["data=docs", f"data.source.paths={listed}", *rest]


def _prepare(words: list[str], options: argparse.Namespace) -> int:
    data, root = _data(words, options)
    screen = Screen()
    dataset = data.prepare(root, screen)
    screen.say(f"{dataset.directory}: digest {dataset.digest[:16]}, {dataset.vocab_size} ids")
    return 0


def _verify(words: list[str], options: argparse.Namespace) -> int:
    from rich.table import Table
    from rich.text import Text

    from pgolf.data.verification.verify import verify

    screen = Screen()
    directory, data = _directory(words, options, screen)
    workers = getattr(data, "workers", None)
    found = verify(directory, screen, differences=data and data.differences, workers=workers)
    table = Table(title=str(directory))
    for column in ("check", "verdict", "detail"):
        table.add_column(column)
    for check in found:
        verdict = Text("pass", "green") if check.passed else Text("FAIL", "bold red")
        table.add_row(check.name, verdict, Text(check.detail))
    screen.tables([table])
    return 0 if all(check.passed for check in found) else 1


def _stats(words: list[str], options: argparse.Namespace) -> int:
    from pgolf.data.stats import plot_lengths, stats

    out, words = take(words, "out")
    screen = Screen()
    directory, _ = _directory(words, options, screen)
    figures = stats(directory)
    screen.tables([_splits(figures), _lengths(figures, screen.terminal), _frequent(figures)])
    plot = (Path(out) if out else directory.parent) / f"{directory.name}.lengths.png"
    try:
        plot_lengths(directory, plot)
    except UserError as error:
        if out:
            raise
        screen.say(f"no plot of the lengths: {error}")
    else:
        screen.say(f"plot of the lengths: {plot}")
    return 0


def _splits(figures: dict[str, Any]) -> Any:
    from rich.table import Table

    transform = figures["front_end"]["transform"]
    kind = transform["kind"] if transform else "none"
    normalised = "lossless" if figures["lossless"] else "published normalisation"
    table = Table(title=f"{figures['name']}, {figures['vocab_size']} ids, transform {kind}, {normalised}")
    table.add_column("")
    names = list(figures["splits"])
    for name in names:
        table.add_column(name, justify="right")
    for title, value in (
        ("documents", lambda split: f"{split['documents']:,}"),
        ("tokens (one BOS a document)", lambda split: f"{split['tokens']:,}"),
        ("bytes of original text", lambda split: f"{split['bytes']:,}"),
        ("bytes per token", lambda split: f"{split['bytes_per_token']:.4f}"),
        ("median document, bytes", lambda split: f"{split['document_bytes']['median']:,.0f}"),
        ("median document, tokens", lambda split: f"{split['document_tokens']['median']:,.0f}"),
        ("longest document, tokens", lambda split: f"{split['document_tokens']['largest']:,}"),
        ("ids used", lambda split: f"{split['ids_used']:,}"),
        ("share of operators", lambda split: f"{100 * split['operator_share']:.2f} %"),
        ("shards", lambda split: f"{split['shards']:,}"),
    ):
        table.add_row(title, *(value(figures["splits"][name]) for name in names))
    return table


def _lengths(figures: dict[str, Any], terminal: bool) -> Any:
    from rich.table import Table

    table = Table(title="Lengths of the training documents")
    table.add_column("tokens", justify="right")
    table.add_column("documents", justify="right")
    table.add_column("")
    histogram = figures["splits"]["train"]["length_histogram"]
    most = max(count for _, count in histogram)
    for smallest, count in histogram:
        bar = ("█" if terminal else "#") * max(1, round(BAR * count / most))
        table.add_row(f"{smallest:,} .. {max(2 * smallest - 1, 0):,}", f"{count:,}", bar)
    return table


def _frequent(figures: dict[str, Any]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(title="Most frequent training tokens")
    table.add_column("id", justify="right")
    table.add_column("text")
    table.add_column("count", justify="right")
    for token, text, count in figures["splits"]["train"]["most_frequent"]:
        table.add_row(str(token), Text(repr(text)), f"{count:,}")
    return table


def _train_tokenizer(words: list[str], options: argparse.Namespace) -> int:
    out, overrides = take(words, "out")
    if out is None:
        raise UserError("pgolf data train-tokenizer needs a file to write: out=FILE.")
    data, _ = _data(overrides, options)
    screen = Screen()
    front_end = data.train_tokenizer(Path(out), screen)
    screen.say(f"{out}: {front_end.vocab_size} ids, SHA-256 {front_end.tokenizer.sha256}")
    return 0


def _download(words: list[str], options: argparse.Namespace) -> int:
    from pgolf.data.published.config import PublishedData

    if options.train_shards is not None:
        words = [*words, f"data.train_shards={options.train_shards}"]
    data, root = _data(words, options)
    if not isinstance(data, PublishedData):
        raise UserError(
            f"data={data.name} is prepared from documents on this machine (`pgolf data prepare`); what can be "
            "downloaded is data=fineweb_sp1024, fineweb_sp4096, fineweb_sp8192, fineweb_sp8192_caseops and "
            "fineweb_byte260."
        )
    screen = Screen()
    dataset = data.download(root, screen)
    screen.say(f"{dataset.directory}: digest {dataset.digest[:16]}, {dataset.vocab_size} ids")
    return 0


def _data(words: list[str], options: argparse.Namespace) -> tuple[Any, Path]:
    """The data part of a configuration, and the folder of prepared data."""
    refuse_words(words)
    config = compose(words, options).config
    return build.build(config["data"], "data"), Path(config["paths"]["data"])


def _directory(words: list[str], options: argparse.Namespace, screen: Screen) -> tuple[Path, Any]:
    """The prepared directory that a path or a configuration names, and the data part of the configuration, None
    without overrides. UserError when the directory is not there."""
    named = [word for word in words if "=" not in word and not word.startswith("~")]
    overrides = [word for word in words if word not in named]
    if len(named) > 1:
        raise UserError(f"one prepared directory at a time: {', '.join(named)}.")
    data: Any = None
    if overrides or not named:
        data, root = _data(overrides, options)
    directory = Path(named[0]) if named else data.directory(root, screen)
    if not directory.is_dir():
        raise UserError(
            f"{directory} is not there: run `pgolf data prepare` (or `download`), or name a prepared directory."
        )
    return directory, data


ACTIONS: dict[str, Callable[[list[str], argparse.Namespace], int]] = {
    "prepare": _prepare,
    "verify": _verify,
    "stats": _stats,
    "train-tokenizer": _train_tokenizer,
    "download": _download,
}
