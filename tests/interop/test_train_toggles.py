"""Settings of whole trainings in random combinations, against a training written out in plain words."""

import random
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pgolf.interop.parity import train
from pgolf.interop.parity.case import Case

from .test_toggles import STOPPING, random_config
from .written_out import WrittenOut, random_weights

STOCK = [(3.4445, -4.775, 2.0315)] * 5
POLAR = [
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
]
MICRO = 48


def drawn(seed: int) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """A script with parameter banks, the configuration of its model, and its recipe."""
    pick = random.Random(seed)
    while True:
        script, config = random_config(pick)
        if "parallel_final_lane" in config:
            break
    config |= {"tie_embeddings": True, "asym_logit_rescale": False, "rope_yarn": False, "train_seq_len": 16}
    accum = pick.choice([1, 2, 3])
    recipe = {
        "iterations": pick.randint(3, 5),
        "warmdown_frac": pick.choice([0.0, 0.5, 1.0]),
        "min_lr": pick.choice([0.0, 0.3]),
        "train_batch_tokens": MICRO * accum,
        "grad_accum_steps": accum,
        "train_seq_len": 16,
        "matrix_lr": 0.02,
        "scalar_lr": 0.01,
        "tied_embed_lr": 0.03,
        "beta1": pick.choice([0.9, 0.8]),
        "beta2": pick.choice([0.95, 0.99]),
        "adam_eps": 1e-8,
        "adam_wd": 0.02,
        "embed_wd": 0.08,
        "muon_wd": 0.1,
        "muon_row_normalize": pick.random() < 0.5,
        "muon_momentum": 0.95,
        "muon_momentum_warmup_start": 0.8,
        "muon_momentum_warmup_steps": pick.choice([0, 2, 9]),
        "muon_backend_steps": 5,
        "grad_clip_norm": pick.choice([0.0, 0.3]),
        "ema_decay": pick.choice([0.5, 0.99]),
        "enable_looping_at": pick.choice([0.0, 0.4, 2.0]),
        "val_batch_tokens": MICRO,
    }
    return script, config, recipe


def packed(shard: np.ndarray, start: int, longest: int) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, targets and the number of each input's document, of the span that begins at `start`."""
    row = torch.from_numpy(shard[start : start + MICRO + 1].astype(np.int64))
    numbers, number, length = [], -1, 0
    for position, token in enumerate(row[:-1].tolist()):
        if position == 0 or token == 1 or length == longest:
            number, length = number + 1, 0
        numbers.append(number)
        length += 1
    return row[:-1], row[1:], torch.tensor(numbers)


def orthogonal(matrix: Tensor, polar: bool) -> Tensor:
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / (x.norm() + 1e-7)
    for a, b, c in POLAR if polar else STOCK:
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


class Reference:
    """The recipe, one parameter after the other."""

    def __init__(self, script: str, config: dict[str, Any], recipe: dict[str, Any], weights: dict[str, Tensor]) -> None:
        self.script, self.config, self.recipe = script, config, recipe
        self.weights = {name: value.clone().requires_grad_() for name, value in weights.items()}
        self.model = WrittenOut(config, self.weights, smear_stops=script in STOPPING)
        self.average = {name: value.clone() for name, value in weights.items()}
        self.momentum = {name: torch.zeros_like(value) for name, value in weights.items() if _is_matrix(name)}
        betas, eps = (recipe["beta1"], recipe["beta2"]), recipe["adam_eps"]
        embedding = [self.weights["tok_emb.weight"]]
        rest = [value for name, value in self.weights.items() if not _is_matrix(name) and name != "tok_emb.weight"]
        self.adam = [
            (torch.optim.AdamW(embedding, betas=betas, eps=eps, weight_decay=recipe["embed_wd"]), "tied_embed_lr"),
            (torch.optim.AdamW(rest, betas=betas, eps=eps, weight_decay=recipe["adam_wd"]), "scalar_lr"),
        ]

    def step(self, number: int, batches: list[tuple[Tensor, Tensor, Tensor]]) -> dict[str, Any]:
        recipe, fraction = self.recipe, number / self.recipe["iterations"]
        looping = bool(self.config["num_loops"]) and fraction >= recipe["enable_looping_at"]
        losses = []
        for x, y, documents in batches:
            loss = F.cross_entropy(self.model.logits(x[None], looping, documents)[0], y)
            (loss / len(batches)).backward()
            losses.append(float(loss.detach()))
        gradients = [value.grad for value in self.weights.values() if value.grad is not None]
        norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
        if recipe["grad_clip_norm"]:
            for gradient in gradients:
                gradient *= min(1.0, recipe["grad_clip_norm"] / (float(norm) + 1e-6))
        down = recipe["warmdown_frac"]
        falls = down > 0 and fraction >= 1 - down
        scale = max((1 - fraction) / down, recipe["min_lr"]) if falls else 1.0
        warm = recipe["muon_momentum_warmup_steps"]
        share = min(number / warm, 1.0) if warm else 1.0
        start, end = recipe["muon_momentum_warmup_start"], recipe["muon_momentum"]
        momentum = (1 - share) * start + share * end
        for optimizer, rate in self.adam:
            optimizer.param_groups[0]["lr"] = recipe[rate] * scale
            optimizer.step()
        self._muon(recipe["matrix_lr"] * scale, momentum)
        for name, value in self.weights.items():
            value.grad = None
            decay = recipe["ema_decay"]
            self.average[name] = decay * self.average[name] + (1 - decay) * value.detach()
        rates = [recipe[rate] * scale for rate in ("tied_embed_lr", "matrix_lr", "scalar_lr")]
        norms = {name: float(value.detach().norm()) for name, value in self.weights.items()}
        row = {"lr": rates, "mom": [momentum], "looping": looping}
        return {"losses": losses, "norm": float(norm), "row": row, "norms": norms}

    @torch.no_grad()
    def _muon(self, lr: float, momentum: float) -> None:
        for name, buffer in self.momentum.items():
            weight = self.weights[name]
            buffer.mul_(momentum).add_(weight.grad)
            update = weight.grad + momentum * buffer
            if self.recipe["muon_row_normalize"]:
                update = update / update.norm(dim=1, keepdim=True).clamp_min(1e-7)
            rows, columns = weight.shape
            weight *= 1 - lr * self.recipe["muon_wd"]
            weight -= lr * max(1, rows / columns) ** 0.5 * orthogonal(update, self.script in ("1787", *STOPPING))


def _is_matrix(name: str) -> bool:
    return name.endswith(("c_q.weight", "c_k.weight", "c_v.weight", "attn.proj.weight", "fc.weight", "mlp.proj.weight"))


def recorded(seed: int) -> Case:
    """What a reference case of the kind train_ holds."""
    script, config, recipe = drawn(seed)
    generator = torch.Generator().manual_seed(seed)
    weights = random_weights(config, generator)
    shard = torch.randint(2, 60, (1000,), generator=generator).numpy().astype(np.uint16)
    shard[torch.randint(0, 1000, (60,), generator=generator).numpy()] = 1
    first = int(np.flatnonzero(shard == 1)[0])
    reference = Reference(script, config, recipe, weights)
    arrays = {f"p/{name}": value.numpy() for name, value in weights.items()} | {"shard0": shard}
    steps = []
    for number in range(recipe["iterations"]):
        begins = [
            first + (number * recipe["grad_accum_steps"] + k) * (MICRO + 1) for k in range(recipe["grad_accum_steps"])
        ]
        steps.append(reference.step(number, [packed(shard, begin, 16) for begin in begins]))
        if number == 0:
            arrays |= {f"after_step0/{name}": v.detach().clone().numpy() for name, v in reference.weights.items()}
    arrays |= {f"raw_final/{name}": value.detach().numpy() for name, value in reference.weights.items()}
    arrays |= {f"ema_final/{name}": value.numpy() for name, value in reference.average.items()}
    arrays |= {"micro_losses": np.array([step["losses"] for step in steps])}
    arrays |= {"grad_norm_before_clip": np.array([step["norm"] for step in steps])}
    meta = {"script": script, "config": config, "train": recipe, "muon_precision": "fp32"}
    meta |= {"lr_order": "[tok, muon, scalar]", "per_step": [step["row"] for step in steps]}
    return Case("case", "train_", None, arrays, meta | {"param_norms_per_step": [step["norms"] for step in steps]})


@pytest.mark.parametrize("seed", range(8))
def test_any_recipe_gives_the_written_out_training(seed):
    case = recorded(seed)
    outcome = train.training(case)
    assert outcome.passed, (case.meta["script"], case.meta["config"], case.meta["train"], outcome)
