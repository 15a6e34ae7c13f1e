"""A run directory made of a checkpoint that a record script wrote, ready for `pgolf eval`."""

import argparse
from pathlib import Path

import yaml

from pgolf.app import build, identity
from pgolf.app.console import Screen
from pgolf.app.verbs.composing import compose
from pgolf.digest import SHORT, run_name
from pgolf.errors import UserError
from pgolf.files import read_json, sha256_file, write_bytes, write_json

ORIGIN = "checkpoint"  # the key of run.json that says where the weights come from


def run_of_checkpoint(file: str, overrides: list[str], options: argparse.Namespace) -> Path:
    """The run directory of this checkpoint and configuration, made unless it is there already.

    Its weights before quantisation are those of the checkpoint. config.json is written last, so a directory that has
    one is whole.
    """
    path = Path(file).expanduser().absolute()
    if not path.is_file():
        raise UserError(f"checkpoint={file}: there is no such file.")
    config = compose(overrides, options).config
    sha256 = sha256_file(path)
    directory = Path(config["paths"]["runs"]) / f"{run_name(config)}-checkpoint-{sha256[:SHORT]}"
    if (directory / "config.json").is_file():
        return directory
    import torch

    from pgolf.interop import checkpoint
    from pgolf.train import weights

    weights_of_file = checkpoint.read(path)
    recipe = build.recipe(config)
    with torch.device("meta"):
        model = recipe.model(recipe.data.vocab_size, recipe.seed)
    fitting = checkpoint.fit(weights_of_file, model, path)
    weights.save(directory / "model.safetensors", fitting)
    origin = {"file": str(path), "sha256": sha256, "parameters": sum(value.numel() for value in fitting.values())}
    write_json(directory / "run.json", {**identity.identity(config), ORIGIN: origin})
    write_bytes(directory / ".hydra" / "overrides.yaml", yaml.safe_dump(overrides).encode())
    write_json(directory / "config.json", config)
    Screen().say(f"{path}: {origin['parameters']:,} parameters, now the weights before quantisation of {directory}")
    return directory


def is_imported(directory: Path) -> bool:
    """Whether the weights of a run directory come from a checkpoint, so that it has no artifact of its own."""
    path = directory / "run.json"
    return path.is_file() and ORIGIN in read_json(path)
