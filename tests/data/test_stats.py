"""Figures and plot of a prepared directory."""

import json
import sys

import numpy as np
import pytest

from pgolf.console import Silent
from pgolf.data import shards
from pgolf.data.baselines import baselines
from pgolf.data.encoding import operators
from pgolf.data.encoding.byte_tokenizer import Bytes
from pgolf.data.encoding.frontend import FrontEnd
from pgolf.data.encoding.transform import CaseOps
from pgolf.data.index import DocumentIndex, write_index
from pgolf.data.manifest import MANIFEST, write_manifest
from pgolf.data.shards import read_shard, write_shard
from pgolf.data.stats import plot_lengths, stats
from pgolf.errors import UserError

from .corpus import small_config, write_corpus


def test_figures_agree_with_the_manifest_and_the_shards(prepared):
    figures = stats(prepared.directory)
    assert json.loads(json.dumps(figures)) == figures
    for name, split in figures["splits"].items():
        totals = prepared.manifest["splits"][name]
        assert all(split[key] == totals[key] for key in ("documents", "tokens", "bytes"))
        assert sum(count for _, count in split["length_histogram"]) == split["documents"]
        without_bos = split["tokens"] - split["documents"]
        assert split["bytes_per_token"] == pytest.approx(split["bytes"] / without_bos)
        assert split["operator_share"] == 0.0
    token, text, count = figures["splits"]["train"]["most_frequent"][0]
    everything = np.concatenate([read_shard(path) for path in prepared.train_files])
    assert count == int((everything == token).sum()) == np.bincount(everything)[2:].max()
    assert prepared.decode([token]) == text


def test_operators_are_counted_and_named(tmp_path):
    config = small_config(write_corpus(tmp_path / "corpus.jsonl"), transform=CaseOps())
    dataset = config.prepare(tmp_path / "root", Silent())
    split = stats(dataset.directory)["splits"]["train"]
    ids = [dataset.front_end.tokenizer.processor.piece_to_id(chr(0xE001 + at)) for at in range(4)]
    stream = np.concatenate([read_shard(path) for path in dataset.train_files])
    share = np.isin(stream, ids).sum() / (len(stream) - split["documents"])
    assert split["operator_share"] == pytest.approx(share) and share > 0.005
    frequent = {token: text for token, text, _ in split["most_frequent"]}
    assert frequent.get(ids[0], "TITLE") == "TITLE"


@pytest.mark.parametrize("shard_tokens", [1000, 7])
def test_operators_that_are_spelled_in_bytes_are_counted(tmp_path, shard_tokens, monkeypatch):
    monkeypatch.setattr(shards, "BLOCK", 5)
    corpus = write_corpus(tmp_path / "corpus.jsonl", 8)
    config = small_config(corpus, transform=CaseOps(), tokenizer=Bytes(), shard_tokens=shard_tokens, val_fraction=0.4)
    dataset = config.prepare(tmp_path / "root", Silent())
    written = "".join(CaseOps().encode(text.decode()) for text in dataset.training_text())
    spelled = 3 * sum(written.count(operator) for operator in CaseOps.operators)
    share = stats(dataset.directory)["splits"]["train"]["operator_share"]
    assert share == pytest.approx(spelled / len(written.encode())) and spelled > 0


def test_operators_of_a_model_without_pieces_for_them_are_counted(tokenizer):
    found = operators.OperatorTokens(FrontEnd(CaseOps(), tokenizer))
    ids = np.array(FrontEnd(CaseOps(), tokenizer).encode("the NASA iPhone \ue001"), np.uint16)
    assert len(found.pieces) == 0 and found.mask(ids).sum() == 3 * 4
    assert found.count([ids[:8], ids[8:8], ids[8:10], ids[10:]]) == 12


def test_empty_documents_of_an_export_are_counted(copy, tmp_path):
    path = copy / "train_000000.bin"
    values, index = np.array(read_shard(path)), DocumentIndex(copy, "train")
    rows, second = np.array(index.rows), int(index.starts[1])
    values[second - 1] = 1  # The last token of the first document begins another one, which is empty.
    write_shard(path, values)
    rows["tokens"][0] -= 1
    rows = np.insert(rows, 1, rows[0])
    rows["tokens"][1] = rows["bytes"][1] = 0
    write_index(copy, "train", rows, ["empty", *index.names()])
    manifest = json.loads((copy / MANIFEST).read_text())
    write_manifest(copy, {key: value for key, value in manifest.items() if key not in ("format", "files", "digest")})
    histogram = stats(copy)["splits"]["train"]["length_histogram"]
    assert histogram[0] == [0, 1] and sum(count for _, count in histogram) == len(rows)
    plot_lengths(copy, tmp_path / "lengths.png")


def test_the_plot_is_a_png_and_its_absence_a_sentence(prepared, tmp_path, monkeypatch):
    path = tmp_path / "new" / "lengths.png"
    plot_lengths(prepared.directory, path)
    assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 5000
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match=r"matplotlib is not installed.*pgolf\[report\]"):
        plot_lengths(prepared.directory, path)


class Listening(Silent):
    def __init__(self):
        self.said: list[str] = []

    def say(self, message: str) -> None:
        self.said.append(message)


def test_baselines_of_large_data_read_a_part_and_say_so(tmp_path, monkeypatch):
    dataset = small_config(write_corpus(tmp_path / "corpus.jsonl")).prepare(tmp_path / "root", Silent())
    console = Listening()
    whole = baselines(dataset, console)
    assert whole == baselines(dataset, console) and len(console.said) == 1
    assert "compressing the validation text" in console.said[0]
    assert 0 < whole["xz_primed"] < whole["xz"] < 8 and 0 < whole["brotli"] < 8 and 0 < whole["unigram"] < 8
    monkeypatch.setattr("pgolf.data.baselines.VALIDATION_BYTES", 3000)
    monkeypatch.setattr("pgolf.data.baselines.TRAINING_BYTES", 3000)
    (dataset.directory.parent / f"{dataset.directory.name}.baselines.json").unlink()
    part = baselines(dataset, console)
    assert "compressing the first 0.0 of 0.0 MB of validation text" in console.said[1]
    assert part["unigram"] == whole["unigram"] and part["brotli"] > whole["brotli"]
