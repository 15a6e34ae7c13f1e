"""`pgolf data prepare|verify|stats|train-tokenizer|download`: corpora on disk."""

import argparse
from collections.abc import Callable
from pathlib import Path

from pgolf.app import build
from pgolf.app.console import Screen
from pgolf.app.verbs.composing import compose, parser, refuse_words, take
from pgolf.errors import UserError

DESCRIPTION = """\
  prepare [overrides]                   gather documents, train the tokenizer, write shards
  verify [DIR | overrides]              compute again all that the manifest says
  stats [DIR | overrides]               documents, tokens, bytes, lengths, most frequent tokens
  train-tokenizer out=FILE [overrides]  train the configuration's tokenizer
  download                              published shards (not supported yet)

examples:
  pgolf data prepare data=pydocs
  pgolf data verify datasets/pydocs-0123456789ab"""


def main(arguments: list[str]) -> int:
    """Run the verb; gives the exit status."""
    made = parser("data", DESCRIPTION, "prepare|verify|stats|train-tokenizer|download [DIR] [key=value ...]")
    options = made.parse_args(arguments)
    action = options.words[0] if options.words else None
    if action not in ACTIONS:
        raise UserError(f"pgolf data needs one of {', '.join(ACTIONS)}; `pgolf data --help` says what they do.")
    return ACTIONS[action](options.words[1:], options)


def _prepare(words: list[str], options: argparse.Namespace) -> int:
    refuse_words(words)
    config = compose(words, options).config
    screen = Screen()
    dataset = build.build(config["data"], "data").prepare(Path(config["paths"]["data"]), screen)
    screen.say(f"{dataset.directory}: digest {dataset.digest[:16]}, {dataset.vocab_size} ids")
    return 0


def _verify(words: list[str], options: argparse.Namespace) -> int:
    from rich.table import Table
    from rich.text import Text

    from pgolf.data.verify import verify

    directory = _directory(words, options)
    screen, found = Screen(), verify(directory)
    table = Table(title=str(directory))
    for column in ("check", "verdict", "detail"):
        table.add_column(column)
    for check in found:
        verdict = Text("pass", "green") if check.passed else Text("FAIL", "bold red")
        table.add_row(check.name, verdict, Text(check.detail))
    screen.tables([table])
    return 0 if all(check.passed for check in found) else 1


def _stats(words: list[str], options: argparse.Namespace) -> int:
    from rich.table import Table
    from rich.text import Text

    from pgolf.data.stats import stats

    directory = _directory(words, options)
    figures = stats(directory)
    tables = []
    splits = Table(title=f"{figures['name']}, {figures['vocab_size']} ids")
    for column in (
        "split",
        "documents",
        "tokens",
        "bytes",
        "bytes per token",
        "median document",
        "ids used",
    ):
        splits.add_column(column, justify="left" if column == "split" else "right")
    for name, split in figures["splits"].items():
        splits.add_row(
            name,
            *(f"{split[key]:,}" for key in ("documents", "tokens", "bytes")),
            f"{split['bytes_per_token']:.3f}",
            f"{split['document_bytes']['median']:,.0f} bytes",
            f"{split['ids_used']:,}",
        )
    tables.append(splits)
    frequent = Table(title="Most frequent training tokens")
    for column in ("id", "text", "count"):
        frequent.add_column(column)
    for token, text, count in figures["splits"]["train"]["most_frequent"]:
        frequent.add_row(str(token), Text(repr(text)), f"{count:,}")
    Screen().tables([*tables, frequent])
    return 0


def _train_tokenizer(words: list[str], options: argparse.Namespace) -> int:
    out, overrides = take(words, "out")
    refuse_words(overrides)
    if out is None:
        raise UserError("pgolf data train-tokenizer needs a file to write: out=FILE.")
    config, screen = compose(overrides, options).config, Screen()
    tokenizer = build.build(config["data"], "data").train_tokenizer(Path(out), screen)
    screen.say(f"{out}: {tokenizer.vocab_size} ids, SHA-256 {tokenizer.sha256}")
    return 0


def _download(words: list[str], options: argparse.Namespace) -> int:
    raise UserError(
        "published shards cannot be downloaded yet: prepare a corpus with `pgolf data prepare` "
        "(data=pydocs needs no network, and text files of your own work too)."
    )


def _directory(words: list[str], options: argparse.Namespace) -> Path:
    """The prepared directory that a path or a configuration names; UserError without one."""
    named = [word for word in words if "=" not in word]
    if len(named) == 1 and len(words) == 1:
        directory = Path(named[0])
    else:
        refuse_words(words)
        config = compose(words, options).config
        directory = build.build(config["data"], "data").directory(Path(config["paths"]["data"]))
    if not directory.is_dir():
        raise UserError(f"{directory} is not there: run `pgolf data prepare`, or name a prepared directory.")
    return directory


ACTIONS: dict[str, Callable[[list[str], argparse.Namespace], int]] = {
    "prepare": _prepare,
    "verify": _verify,
    "stats": _stats,
    "train-tokenizer": _train_tokenizer,
    "download": _download,
}
