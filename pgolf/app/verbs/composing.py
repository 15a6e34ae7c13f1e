"""What the verbs that take overrides share: their flags, composing and checking."""

import argparse

from pgolf.app import check
from pgolf.app.compose import Job, composer, resolve_directory
from pgolf.errors import ConfigError


def parser(verb: str, description: str, usage: str) -> argparse.ArgumentParser:
    """An argument parser with overrides and Hydra's flags for where configurations are."""
    made = argparse.ArgumentParser(
        prog=f"pgolf {verb}",
        usage=f"pgolf {verb} {usage}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("words", nargs="*", metavar="key=value", help="overrides, as for `pgolf` itself")
    made.add_argument("--config-dir", "-cd", help="a folder with your own groups and experiments")
    made.add_argument("--config-path", "-cp", help="another configuration instead of the shipped one")
    made.add_argument("--config-name", "-cn", default="config", help="the root file (default: config)")
    return made


def compose(overrides: list[str], options: argparse.Namespace) -> Job:
    """One checked job. ConfigError with every problem."""
    return compose_all(overrides, options, multirun=False)[0]


def compose_all(overrides: list[str], options: argparse.Namespace, multirun: bool) -> list[Job]:
    """Every checked job of a command line. ConfigError with every problem of every job."""
    jobs = composed(overrides, options, multirun)
    check.require_valid(jobs)
    return jobs


def composed(overrides: list[str], options: argparse.Namespace, multirun: bool = False) -> list[Job]:
    """The jobs of a command line, not checked yet."""
    directory = resolve_directory(options.config_path)
    with composer(options.config_dir, directory, options.config_name) as made:
        return made.jobs(overrides, multirun)


def take(words: list[str], key: str) -> tuple[str | None, list[str]]:
    """The value of `key=...` among the words, and the other words."""
    found = [word for word in words if word.startswith(f"{key}=")]
    rest = [word for word in words if word not in found]
    return (found[-1].partition("=")[2] if found else None), rest


def refuse_words(words: list[str]) -> None:
    """ConfigError for a word that is no override."""
    wrong = [word for word in words if "=" not in word and not word.startswith("~")]
    if wrong:
        raise ConfigError([f"{word}: expected key=value" for word in wrong])
