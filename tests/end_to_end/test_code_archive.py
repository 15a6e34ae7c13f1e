"""The counted code scores the counted weights: code.zip or wrapper.py alone, in a fresh interpreter, gives the run's
own numbers."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pgolf.data.dataset import Dataset
from pgolf.files import read_json

SCORE = """
import importlib, json, runpy, sys
from functools import partial
from pathlib import Path
archive, run, documents, out = sys.argv[1:]
runpy.run_path(archive) if archive.endswith(".py") else sys.path.insert(0, archive)
import numpy as np, torch
from pgolf.console import Silent
from pgolf.data.validation import ValidationSet
from pgolf.distributed import Group
from pgolf.kernels.attend import select
from pgolf.quant import container
from pgolf.score.scorer import Scorer
from pgolf.ttt.fixed import Chunked
from pgolf.ttt.strategy import Bench

def build(node):
    if isinstance(node, dict) and "_target_" in node:
        if node["_target_"] == "pgolf.absent.absent":
            return None
        module, _, name = node["_target_"].rpartition(".")
        target = getattr(importlib.import_module(module), name)
        arguments = {key: build(value) for key, value in node.items() if not key.startswith("_")}
        return partial(target, **arguments) if node.get("_partial_") else target(**arguments)
    return node

config = json.loads((Path(run) / "config.json").read_text())
given = np.load(documents)
columns = [given[key] for key in ("tokens", "token_bytes", "starts", "bytes")]
validation = ValidationSet(*columns, given["names"].tolist())
model = build(config["model"])(config["data"]["tokenizer"]["vocab_size"], config["seed"])
model.load_state_dict(container.load(Path(run) / "artifact.pgolf")[0])
model.set_plan("looped")
device = torch.device("cpu")
scorer = Scorer(validation, Group(0, 1, device))
train = config["train"]
rows = train["micro_batch_tokens"] // train["sequence_tokens"]
bench = Bench(config["seed"], select(config["kernels"], device)[1], Silent())
Chunked(sequence_tokens=train["sequence_tokens"], rows=rows).run(model.eval(), scorer, bench)
np.save(out, scorer.ledger.per_document()["nats"])
own = [getattr(module, "__file__", archive) for name, module in sys.modules.items() if name.split(".")[0] == "pgolf"]
assert own and all(file.startswith(archive) for file in own), own
"""


@pytest.mark.parametrize("code", ["code.zip", "wrapper.py"])
def test_code_and_weights_alone_give_the_score_of_every_document(finished: Path, tmp_path: Path, code: str) -> None:
    data = Path(read_json(finished / "run.json")["stages"]["prepare"]["result"]["data_directory"])
    validation = Dataset(data).validation()
    np.savez(
        tmp_path / "documents.npz",
        tokens=validation.tokens,
        token_bytes=validation.token_bytes,
        starts=validation.document_starts,
        bytes=validation.document_bytes,
        names=np.array(validation.names),
    )
    arguments = [finished / code, finished, tmp_path / "documents.npz", tmp_path / "nats.npy"]
    done = subprocess.run(
        [sys.executable, "-I", "-c", SCORE, *map(str, arguments)],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    nats, written = np.load(tmp_path / "nats.npy"), np.load(finished / "scores.npz")["nats_post_quant"]
    assert len(nats) == len(validation.names) >= 2
    assert nats.tolist() == written.tolist()
