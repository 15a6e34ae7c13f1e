"""`pgolf inspect run=DIR --converged`: where the learned gains of a run ended, as overrides for the next one.

The loop of PR 1648: train, look at the mean gain of each layer, start the next run there.
"""

from pathlib import Path
from typing import Any

from pgolf.app import build
from pgolf.app.console import Screen
from pgolf.app.verbs.tables import text_table
from pgolf.errors import ConfigError, UserError
from pgolf.files import read_json


def show(run: str, others: list[str]) -> int:
    """Print the tables of a finished training and the overrides; gives the exit status."""
    import torch

    from pgolf.model.roles import parameter_roles
    from pgolf.report.learned import means
    from pgolf.train.diagnostics.learned import learned_names, summaries
    from pgolf.train.weights import load

    if others:
        raise ConfigError([f"{word}: run=DIR --converged reads what the run was made with" for word in others])
    directory = Path(run).expanduser()
    for name in ("config.json", "model.safetensors"):
        if not (directory / name).is_file():
            raise UserError(f"run={run} has no {name}: give the directory of a run whose training is done.")
    config = read_json(directory / "config.json")
    recipe = build.recipe(config)
    with torch.device("meta"):
        model = recipe.model(recipe.data.vocab_size, recipe.seed)
    weights = load(directory / "model.safetensors")
    if missing := [name for name in parameter_roles(model) if name not in weights]:
        raise UserError(f"run={run}: model.safetensors has no {missing[0]}; it is of another configuration.")
    names = learned_names(model)
    screen = Screen()
    for kind, rows in means(summaries(weights, names)).items():
        screen.tables([text_table(kind, ["where", "mean"], [[row, f"{value:.6g}"] for row, value in rows.items()])])
    found = overrides(config["model"], model, weights)
    screen.say("overrides that start where this run ended:" if found else "no override sets any of these")
    for override in found:
        screen.say(f"  {override}")
    return 0


def overrides(node: dict[str, Any], model: Any, weights: dict[str, Any]) -> list[str]:
    """What a next run is given to begin where `weights` are: initial gains by layer (their mean over heads), and a
    learned blend of repeated visits as the constants of a frozen one. node: of the model's configuration."""
    found = []
    if "qk_gain" in node:
        gains = node["qk_gain"] if isinstance(node["qk_gain"], list) else [node["qk_gain"]] * len(model.blocks)
        for layer in range(len(gains)):  # a block without attention keeps what it was given
            gain = _gains(model.blocks[layer].attn, weights, f"blocks.{layer}.attn.q_gain")
            gains[layer] = gains[layer] if gain is None else float(gain.float().mean())
        found.append(f"model.qk_gain={_list(gains)}")
    alpha, beta = weights.get("recurrence.recur_alpha"), weights.get("recurrence.carry_beta")
    if alpha is not None:
        found += [
            "model/recurrence=blend_frozen",
            f"model.recurrence.layers={_list(model.recurrence.layers)}",
            f"model.recurrence.alpha={_list(alpha.float().tolist())}",
        ]
    if beta is not None:
        found += [
            "model/recurrence=cross_layer_frozen",
            f"model.recurrence.layers={_list(model.recurrence.layers)}",
            f"model.recurrence.beta={_list(beta.float().tolist())}",
            f"model.recurrence.alpha={_list(weights['recurrence.carry_alpha'].float().tolist())}",
        ]
    return found


def _gains(attention: Any, weights: dict[str, Any], name: str) -> Any:
    """The gains of an attention among `weights`, [num_heads]; None for a block without one."""
    from pgolf.model.query_gain import BoundedGain

    if attention is not None and isinstance(attention.q_gain, BoundedGain):
        return attention.q_gain.of(weights[f"{name}.raw"].float())
    return weights.get(name)


def _list(values: list[Any]) -> str:
    """A list as the command line takes it, without spaces."""
    return f"[{','.join(_list(one) if isinstance(one, list) else f'{one:.8g}' for one in values)}]"
