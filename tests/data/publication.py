"""A small published export in memory: layout, manifest, tokenizer and shards like the real ones."""

import json
from dataclasses import dataclass

import numpy as np

from pgolf.data.encoding.frontend import FrontEnd, train_front_end
from pgolf.data.encoding.tokenizer import PublishedSentencePiece
from pgolf.data.encoding.transform import CaseOps
from pgolf.data.shards import MAGIC

from .corpus import small_documents

REPOSITORY = "someone/golf-data"
PLAIN, CASEOPS = "sp400", "sp400_lossless_caps_caseops_v1_reserved"
VAL_DOCUMENTS, SHARD_TOKENS = 7, 300


@dataclass(frozen=True)
class Publication:
    """files: path -> content. front_end: what encoded them. val_texts: the validation documents' original texts."""

    files: dict[str, bytes]
    front_end: FrontEnd
    val_texts: list[str]
    train_shards: int
    val_tokens: int


def shard(values: np.ndarray) -> bytes:
    header = np.zeros(256, "<i4")
    header[:3] = MAGIC, 1, len(values)
    return header.tobytes() + values.astype("<u2").tobytes()


def front_end(caseops: bool, vocab_size: int = 400) -> FrontEnd:
    trainer = PublishedSentencePiece(vocab_size=vocab_size, normalization="published")
    return train_front_end(CaseOps() if caseops else None, trainer, texts())


def texts() -> list[str]:
    """Documents with capitals and shouting, and with a little of what the published normalisation changes."""
    return [
        " ".join(text.split()).replace("Document", "Document NASA McDonald") + " \ufb01ne  print" * (i % 3 == 0)
        for i, text in enumerate(small_documents(60))
    ]


def publish(caseops: bool, encoder: FrontEnd | None = None) -> Publication:
    """The export of `texts()`: the first documents are validation, each document begins with BOS."""
    encoder = encoder or front_end(caseops)
    documents = texts()
    name = f"fineweb10B_{CASEOPS if caseops else PLAIN}"
    files: dict[str, bytes] = {}
    counts, val_tokens = {}, 0
    for split, own in (("val", documents[:VAL_DOCUMENTS]), ("train", documents[VAL_DOCUMENTS:])):
        encoded = encoder.encode_documents(own)
        starts = np.cumsum(encoded.lengths) - encoded.lengths
        tokens, sidecar = np.insert(encoded.ids, starts, 1), np.insert(encoded.token_bytes, starts, 0)
        pieces = range(0, len(tokens), SHARD_TOKENS)
        counts[f"files_{split}"] = len(pieces)
        for index, start in enumerate(pieces):
            end = start + SHARD_TOKENS
            files[f"datasets/datasets/{name}/fineweb_{split}_{index:06d}.bin"] = shard(tokens[start:end])
            if caseops and split == "val":
                files[f"datasets/datasets/{name}/fineweb_val_bytes_{index:06d}.bin"] = shard(sidecar[start:end])
        val_tokens = len(tokens) if split == "val" else val_tokens
    manifest = {
        "version": "extra keys are not read",
        "datasets": [
            {"name": "fineweb10B_other", "tokenizer_name": "other", "stats": {"files_train": 1, "files_val": 1}},
            {
                "name": name,
                "tokenizer_name": "sp_bpe_400",
                "path": f"datasets/{name}",
                "train_glob": f"datasets/{name}/fineweb_train_*.bin",
                "vocab_size": encoder.vocab_size,
                "bos_id": 1,
                "stats": counts | {"docs_total": len(documents)},
            },
        ],
        "tokenizers": [
            {"name": "sp_bpe_400", "kind": "sentencepiece_bpe", "model_path": "tokenizers/fineweb_400_bpe.model"}
        ],
    }
    files["datasets/manifest.json"] = json.dumps(manifest, indent=2).encode()
    files["datasets/tokenizers/fineweb_400_bpe.model"] = encoder.tokenizer.model
    return Publication(files, encoder, documents[:VAL_DOCUMENTS], counts["files_train"], val_tokens)
