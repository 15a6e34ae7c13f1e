"""One run: an ordered list of stages over a run directory. Read `execute` to know what pgolf does.

    prepare -> train (with averaging) -> score before quantisation -> calibrate, quantise, pack
    -> load the artifact from disk -> score it -> score it with test-time training -> audit -> summary

A stage that an earlier process finished is not done again: killed runs continue, finished ones are only read.
"""

import contextlib
import copy
import functools
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pgolf.audit.artifact import artifact_check, validation_files
from pgolf.audit.checks import Check, not_probed, table
from pgolf.audit.figures import of_stages
from pgolf.audit.seal import BEFORE_SCORING, WHILE_SCORING, sealed
from pgolf.console import Console, Silent
from pgolf.data.baselines import baselines
from pgolf.data.dataset import Dataset
from pgolf.data.encoding.alone import bytes_alone
from pgolf.data.loaders import BatchShape
from pgolf.distributed import Group
from pgolf.errors import UserError
from pgolf.files import read_json, write_bytes, write_json
from pgolf.model.context import Context
from pgolf.model.gpt import GPT
from pgolf.model.mode import evaluating
from pgolf.model.roles import parameter_roles, stream
from pgolf.model.sample import continuation
from pgolf.quant import container
from pgolf.quant.budget import artifact_bytes, write_code
from pgolf.quant.calibration import Ground, calibrate
from pgolf.quant.hessian import Calibration
from pgolf.quant.packer import annotate
from pgolf.quant.temperature import TEMPERATURE, Temperature, temperature_of
from pgolf.record import Tracker, Untracked
from pgolf.scoring import score, validate
from pgolf.summary import SCORED_STAGES, summarise
from pgolf.train.clock import BudgetClock
from pgolf.train.weights import load as load_weights
from pgolf.train.weights import save as save_weights
from pgolf.ttt.strategy import Bench
from pgolf.workshop import Recipe, Workshop, chosen_attention, prepared_data, refuse_other_data, scoring_forward

PROMPTS = ("Return a new", "If the argument is not")
SAMPLE_TOKENS = 60
REHEARSED_STEPS, REHEARSED_PARAMETERS = 2, 4_000_000
"""Of the trainings and compressions that the audit compares."""


def execute(
    recipe: Recipe, identity: dict[str, Any], directory: Path, group: Group, console: Console, tracker: Tracker
) -> dict[str, Any]:
    """Do or continue the run in `directory`; returns the summary that it writes to summary.json."""
    shop = Workshop(recipe, identity, directory, group, console, tracker)
    record = shop.record
    if not record.done("train"):
        _ = shop.fused  # refused before any work
    _ = shop.forward
    record.stage("prepare", lambda: _prepare(shop))
    _ = shop.dataset  # on every process before any stage that only the leader does
    with _no_validation(shop, "training"):
        record.stage("train", lambda: _train(shop))
    record.stage("pre_quant", lambda: score(shop, "pre_quant", _as_trained(shop)))
    with _no_validation(shop, "calibration, quantisation or packing"):
        record.stage("compress", lambda: _compress(shop))
    return _finish(shop)


def _no_validation(shop: Workshop, what: str, why: str = BEFORE_SCORING) -> contextlib.AbstractContextManager[None]:
    """Validation files stay closed; for the scores in the middle of training the text is read before."""
    _ = shop.validation
    return sealed(validation_files(shop.dataset), what, why)


def evaluate(
    recipe: Recipe,
    identity: dict[str, Any],
    source: Path,
    directory: Path,
    group: Group,
    console: Console,
    tracker: Tracker,
    requantise: bool,
) -> dict[str, Any]:
    """Score a finished run again in `directory` without training: from its averaged weights when `requantise`, else
    from its artifact."""
    shop = Workshop(recipe, identity, directory, group, console, tracker, begun=read_json(source / "run.json"))
    needed = ["model.safetensors"] if requantise else ["artifact.pgolf"]
    for name in needed:
        if not (source / name).exists():
            raise UserError(f"{source} has no {name}: its run has not come that far. Run it to the end first.")
        if group.leads and not (directory / name).exists():
            write_bytes(directory / name, (source / name).read_bytes())
    if group.leads and not requantise:
        _write_code(shop)  # another strategy is other code
    group.barrier()
    _ = shop.forward  # refused before any work
    shop.record.stage("prepare", lambda: _prepare(shop))
    _ = shop.dataset
    if requantise:
        shop.record.stage("pre_quant", lambda: score(shop, "pre_quant", _averaged(shop)))
        with _no_validation(shop, "calibration, quantisation or packing"):
            shop.record.stage("compress", lambda: _compress(shop))
    return _finish(shop)


def audit_run(recipe: Recipe, directory: Path | None, group: Group, console: Console) -> dict[str, Any]:
    """Probe the recipe's strategy, on the artifact in `directory` or on an untrained model when there is none, and
    what the artifact of such a recipe depends on."""
    begun = read_json(directory / "run.json") if directory is not None else {}
    prepared = prepared_data(begun)
    dataset = Dataset(prepared) if prepared else recipe.data.prepare(recipe.data_root, console)
    dataset.refuse(recipe.data.differences(dataset.manifest))
    refuse_other_data(begun, dataset, directory)
    model = recipe.model(recipe.data.vocab_size, recipe.seed)
    if directory is not None:
        weights, metadata = container.load(directory / "artifact.pgolf")
        model.load_state_dict(weights)
        model.temperature = temperature_of(metadata)
    else:
        _randomise(model, recipe.seed)
    model.set_plan("looped")
    _, attention = chosen_attention(recipe, group.device)
    bench = Bench(recipe.seed, attention, console, forward=scoring_forward(recipe, group))
    stages = read_json(directory / "summary.json")["stages"] if directory is not None else {}
    checks = recipe.audit.run(
        model.to(group.device).eval(),
        recipe.ttt,
        dataset.validation(),
        bench,
        dataset=dataset,
        reported=of_stages(stages, directory) if directory is not None else None,
        thorough=True,
    )
    return table([*checks, _artifact_check(recipe, dataset, group, model)], recipe.audit.scope(recipe.ttt)[1])


def _artifact_check(recipe: Recipe, dataset: Dataset, group: Group, model: GPT) -> Check:
    """Whether a short training and the compression come out the same beside another validation text."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if parameters > REHEARSED_PARAMETERS:
        return not_probed(
            "D6",
            f"{parameters:,} parameters are too many to train and quantise twice here (at most "
            f"{REHEARSED_PARAMETERS:,}): add scale=mini and leave out run=",
        )
    with tempfile.TemporaryDirectory() as workplace:
        return artifact_check(functools.partial(_rehearse, recipe, group), dataset, Path(workplace))


def _rehearse(recipe: Recipe, group: Group, dataset: Dataset, directory: Path) -> Path:
    """The recipe's own stages up to the artifact, with a few steps and a little calibration."""
    train, quant = copy.copy(recipe.train), copy.copy(recipe.quant)
    train.max_steps, train.max_seconds, train.validate_every = REHEARSED_STEPS, None, None
    quant.calibration_batches = min(quant.calibration_batches, REHEARSED_STEPS)
    short = replace(recipe, train=train, quant=quant)
    shop = Workshop(short, {}, directory, group, Silent(), Untracked())
    shop.dataset = dataset
    _train(shop)
    _compress(shop)
    return directory / "artifact.pgolf"


def _finish(shop: Workshop) -> dict[str, Any]:
    """Everything after the artifact is on disk."""
    record = shop.record
    loaded, seconds = _load(shop)
    record.stage("load", lambda: {"seconds": seconds})
    record.stage("post_quant", lambda: score(shop, "post_quant", loaded))
    with _no_validation(shop, type(shop.recipe.ttt).__name__, WHILE_SCORING):
        record.stage("final", lambda: score(shop, "final", _load(shop)[0], shop.recipe.ttt))
    record.stage("audit", lambda: _audit(shop, loaded))
    record.stage("samples", lambda: {"samples": _samples(shop, loaded)})
    summary = summarise(shop, sum(parameter.numel() for parameter in loaded.parameters()))
    if shop.group.leads:
        write_json(shop.directory / "summary.json", summary)
    record.log({"event": "summary", **summary})
    return summary


def _prepare(shop: Workshop) -> dict[str, Any]:
    dataset = shop.dataset
    shop.record.data["data_digest"] = dataset.digest
    validation = shop.validation
    charged, counted = int(validation.token_bytes.sum()), int(validation.document_bytes.sum())
    if charged != counted:
        raise UserError(
            f"{dataset.directory}: tokens stand for {charged} bytes but the validation text has {counted}; "
            "prepare the data again."
        )
    found = baselines(dataset, shop.console) if shop.group.leads else {}
    return {"baselines": found, "data_directory": str(dataset.directory), "validation_bytes": counted}


def _train(shop: Workshop) -> dict[str, Any]:
    recipe = shop.recipe
    model = shop.new_model()
    rounding = recipe.quant.training(model, functools.partial(_calibrate, shop, model))  # of what will be stored
    recipe.train.equip(model, recipe.seed)
    optimizers = recipe.optim(model)
    clock = BudgetClock()
    averaged, progress = recipe.train.run(
        model,
        optimizers,
        shop.dataset,
        shop.attention,
        shop.directory / "checkpoint",
        group=shop.group,
        clock=clock,
        console=shop.console,
        log=shop.record.log,
        validate=functools.partial(validate, shop, model),
        rounding=rounding,
        seed=recipe.seed,
        token_bytes=lambda: bytes_alone(shop.dataset.front_end),
        fused=shop.fused,
    )
    if shop.group.leads:
        weights = {name: value.to(model.state_dict()[name].dtype).contiguous() for name, value in averaged.items()}
        save_weights(shop.directory / "model.safetensors", weights)
    shop.group.barrier()
    return {
        "steps": progress.step,
        "tokens": progress.tokens,
        "looped_at": progress.looped_at,
        "rounded_at": progress.rounded_at,
        "fused": list(shop.fused.names),
        "recompiles": progress.recompiles,
        "turns": progress.turns,
        "never_happened": progress.missed,
        "dead_parameters": progress.dead,
        "seconds": clock.elapsed("train"),
        "phases": clock.seconds,
        "data_seconds": progress.data_seconds,
    }


def _averaged(shop: Workshop) -> GPT:
    return shop.model_with(load_weights(shop.directory / "model.safetensors"))


def _as_trained(shop: Workshop) -> GPT:
    """The averaged weights; rounded where training saw them so at its end and promised that the artifact holds them."""
    model, result = _averaged(shop), shop.record.result("train")
    rule, on = shop.recipe.quant.qat, result["rounded_at"]
    if rule is None or not rule.exact or on is None or rule.share(result["steps"] - 1 - on) < 1.0:
        return model
    rounding = shop.recipe.quant.training(model, functools.partial(_calibrate, shop, model))
    assert rounding is not None  # there is a rule
    rounding.begin()
    with torch.no_grad():
        for name, value in rounding.values().items():
            model.get_parameter(name).copy_(value)
    return model


def _compress(shop: Workshop) -> dict[str, Any]:
    """Calibrate with all processes or one, then one quantises and writes artifact.pgolf and code.zip."""
    recipe, model = shop.recipe, _averaged(shop)
    if recipe.quant.rotation is not None:
        recipe.quant.rotation.enter(model)
    roles = parameter_roles(model)
    state = {name: value.detach().cpu() for name, value in model.state_dict().items()}
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    names, with_moments = recipe.quant.hessian_names(shapes, roles), recipe.quant.moment_names(shapes, roles)
    clock = BudgetClock()
    with clock.phase(recipe.quant.calibration.phase):
        calibrations = _calibrate(shop, model, names, with_moments)
    report: dict[str, Any] = {}
    if shop.group.leads:
        # nothing that names a place or a person's choice of words: the same recipe gives the same bytes anywhere
        metadata = {**recipe.description, "digest": shop.record.data.get("digest"), "seed": recipe.seed}
        with clock.phase("quantise"):  # and code, of which a target for the size needs several rounds
            report = recipe.quant.compress(
                state, roles, calibrations, metadata, shop.directory / "artifact.pgolf", shop.console
            )
        with clock.phase("pack"):
            _write_code(shop)
    shop.group.barrier()
    fitted = {}
    if recipe.quant.temperature is not None:
        with clock.phase("calibrate"):  # it reads training text
            fitted = {TEMPERATURE: _fit_temperature(shop, recipe.quant.temperature)}
    return {
        "seconds": sum(clock.seconds.values()),
        "phases": clock.seconds,
        "classes": report.get("classes"),
        "artifact": artifact_bytes(shop.directory, recipe.quant.limit_bytes, recipe.quant.reading),
        **fitted,
    }


def _write_code(shop: Workshop) -> None:
    """Write code.zip and wrapper.py of a run."""
    write_code(shop.directory, (*shop.recipe.modules, *shop.kernel_modules), shop.recipe.cache_root)


def _fit_temperature(shop: Workshop, temperature: Temperature) -> float:
    """Give the artifact the temperature that suits its own model, and say it; every process looks for it."""
    model, _ = _load(shop)
    found = temperature.fit(_ground(shop, model), shop.recipe.quant.calibration_batches)
    if shop.group.leads:
        annotate(shop.directory / "artifact.pgolf", {TEMPERATURE: found})
    shop.group.barrier()
    return found


def _ground(shop: Workshop, model: GPT) -> Ground:
    train = shop.recipe.train
    whole_rows = train.micro_batch_tokens // train.sequence_tokens * train.sequence_tokens
    shape, files = BatchShape(whole_rows, train.sequence_tokens), shop.dataset.train_files
    return Ground(model, shop.attention, files, shape, shop.recipe.seed, shop.group, shop.console)


def _calibrate(shop: Workshop, model: GPT, names: list[str], with_moments: list[str]) -> dict[str, Calibration]:
    """What the quantiser has to know of the weights `names`, by the text and the processes that it chose."""
    quant, ground = shop.recipe.quant, _ground(shop, model)
    with evaluating(model):
        bigrams = quant.allocation is not None and quant.allocation.needs_bigrams
    return calibrate(quant.calibration, quant.calibration_batches, names, with_moments, ground, bigrams=bigrams)


def _load(shop: Workshop) -> tuple[GPT, float]:
    """A fresh model with the weights of artifact.pgolf, and the seconds it took."""
    begun = time.monotonic()
    weights, metadata = container.load(shop.directory / "artifact.pgolf")
    model = shop.model_with(weights)
    model.temperature = temperature_of(metadata)
    return model, time.monotonic() - begun


def _audit(shop: Workshop, model: GPT) -> dict[str, Any]:
    result: dict[str, Any] = {"verdict": "fail", "checks": []}
    if shop.group.leads:
        shop.console.say("auditing the strategy on a sample: flips, normalisation, state, ledger, bytes")
        audit, strategy, record = shop.recipe.audit, shop.recipe.ttt, shop.record
        stages = {name: record.result(name) for name in SCORED_STAGES if record.done(name)}
        reported = of_stages(stages, shop.directory)
        bench = shop.bench("audit")
        checks = audit.run(model, strategy, shop.validation, bench, dataset=shop.dataset, reported=reported)
        result = table(
            [*checks, not_probed("D6", "a sample in a run leaves it out; `pgolf audit` makes it")],
            audit.scope(strategy)[1],
        )
    shop.group.barrier()
    return result


def _samples(shop: Workshop, model: GPT) -> list[dict[str, str]]:
    if not shop.group.leads:
        return []
    dataset, found = shop.dataset, []
    for prompt in PROMPTS:
        tokens = continuation(
            model,
            [dataset.bos_id, *dataset.encode(prompt)],
            SAMPLE_TOKENS,
            0.7,
            stream(shop.recipe.seed, f"sample/{prompt}"),
            Context(shop.attention),
            shop.recipe.train.sequence_tokens,
        )
        found.append({"prompt": prompt, "text": dataset.decode(tokens, malformed="keep")})
    return found


def _randomise(model: GPT, seed: int) -> None:
    """Give an untrained model weights that make every prediction depend on its inputs (output projections start at
    zero)."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(torch.randn(parameter.shape, generator=stream(seed, f"audit/{name}")) * 0.1)
