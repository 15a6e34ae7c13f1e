"""Every kind of model part at once, from training to the audit of the scored artifact."""

from pathlib import Path

import torch

from pgolf.files import read_json
from pgolf.quant import container
from pgolf.train.weights import load

from .conftest import Ground, only, succeed

PARTS = (
    "model/attention/gate=sparse",
    "model/attention/exclude=gated",
    "model/smear=smear_bos",
    "model/lanes=two_lane",
    "model/mlp=swiglu",
    "model/head=untied",
    "model/softcap=asymmetric",
    "model.depth.num_layers=4",
    "model.depth.num_loops=2",
    "model.depth.ramp=true",
    "model.precision.parameters.embedding=bfloat16",
    "quant.min_quantised_elements=1000",  # the embedding and the head go through GPTQ
)


def test_a_mixture_of_parts_is_trained_packed_and_scored(ground: Ground, tmp_path: Path) -> None:
    succeed(*ground.job(tmp_path, *PARTS))
    directory = only(tmp_path)
    summary = read_json(directory / "summary.json")
    assert summary["audit"]["verdict"] == "pass"
    stages = summary["stages"]
    assert stages["final"]["val_bpb"] < stages["post_quant"]["val_bpb"]  # adapters at every site
    assert abs(stages["post_quant"]["val_bpb"] - stages["pre_quant"]["val_bpb"]) < 0.1
    averaged, packed = load(directory / "model.safetensors"), container.load(directory / "artifact.pgolf")[0]
    assert (
        set(averaged)
        == set(packed)
        >= {
            "blocks.0.attn.gate.attn_gate_w",
            "blocks.0.attn.exclude.xsa_alpha",
            "smear.smear_lambda",
            "lanes.parallel_post_lambdas",
            "softcap.softcap_pos",
            "head.weight",
        }
    )
    assert averaged["tok_emb.weight"].dtype == torch.bfloat16
    assert averaged["softcap.softcap_pos"].item() != averaged["softcap.softcap_neg"].item() != 30.0
    error = (packed["tok_emb.weight"].float() - averaged["tok_emb.weight"].float()).norm()
    assert 0 < error < 0.1 * averaged["tok_emb.weight"].float().norm()
