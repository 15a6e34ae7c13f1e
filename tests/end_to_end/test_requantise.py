"""One trained model under several quantisers, none of which trains again."""

import shutil
from pathlib import Path

from pgolf.files import read_json
from pgolf.quant import container

from .conftest import succeed


def test_a_sweep_over_quantisers_starts_from_the_stored_weights(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / finished.name
    shutil.copytree(finished, run, ignore=shutil.ignore_patterns("eval-*"))
    words = ("eval", "--multirun", f"run={run}", "ttt=none")
    summary = read_json(run / "summary.json")
    target = round(0.9 * summary["artifact"]["weight_bytes"])
    shown = succeed(*words, "quant=gptq,trellis", f"quant.target_bytes={target}")
    assert shown.count("\n  done ") == 2 and "train  " not in shown
    schemes = set()
    for folder in run.glob("eval-*"):
        again = read_json(folder / "summary.json")
        assert again["stages"]["pre_quant"]["val_bpb"] == summary["stages"]["pre_quant"]["val_bpb"]
        assert 0.95 * target <= again["artifact"]["weight_bytes"] <= target
        assert (folder / "artifact.pgolf").stat().st_size == again["artifact"]["weight_bytes"]
        tensors, _ = container.read(folder / "artifact.pgolf")
        schemes |= {one.encoded.scheme for one in tensors if one.role == "matrix"}
        assert (folder / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()
    assert any(one.startswith("gptq int") for one in schemes) and "trellis gptq by row" in schemes
    every = succeed(*words, "quant=glob(*)")
    assert every.count("\n  done ") == len(list((Path(__file__).parents[2] / "conf" / "quant").glob("*.yaml")))
