"""D6: the artifact must come out the same beside another validation text."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from pgolf.audit.checks import Check, decided, not_probed
from pgolf.audit.seal import SealBroken, sealed
from pgolf.data.dataset import Dataset
from pgolf.data.index import names_name, write_index
from pgolf.data.manifest import MANIFEST, write_manifest
from pgolf.data.shards import read_shard, write_shard
from pgolf.files import sha256_file

MakeArtifact = Callable[[Dataset, Path], Path]
"""(data, empty directory) -> the artifact, made there from scratch."""


def validation_files(dataset: Dataset) -> list[Path]:
    """The files that hold validation text, or its bytes and names."""
    names = [*(path.name for path in dataset.files("val")), *dataset.manifest["byte_files"], names_name("val")]
    return [dataset.directory / name for name in names]


def artifact_check(make: MakeArtifact, dataset: Dataset, workplace: Path) -> Check:
    """Make the artifact with validation files sealed, and again beside half of the validation text.

    The null baseline, where the two differ, is a third artifact beside the text of the first: a recipe that never
    gives the same bytes twice cannot be probed.
    """
    if len(dataset.index("val")) < 2:
        return not_probed("D6", "the validation split has one document, so there is no other text to put in its place")
    other = with_other_validation(dataset, workplace / "other-data")
    try:
        with sealed(validation_files(dataset), "training or calibration"):
            first = sha256_file(make(dataset, workplace / "first"))
    except SealBroken as broken:
        return Check("D6", "fail", 1, None, str(broken))
    second = sha256_file(make(other, workplace / "second"))
    if first != second and first != sha256_file(make(dataset, workplace / "third")):
        return not_probed("D6", "the recipe gives other bytes each time, whatever the validation text is")
    same = first == second
    detail = f"artifact {first[:12]}" + (" both times" if same else f", beside other validation text {second[:12]}")
    return decided("D6", same, 2, float(not same), detail + "; validation files stayed closed")


def with_other_validation(dataset: Dataset, directory: Path) -> Dataset:
    """The same data set in `directory`, with only the second half of its validation documents."""
    directory.mkdir(parents=True)
    index = dataset.index("val")
    kept = slice(len(index) // 2, len(index))
    begin = int(index.starts[kept.start])
    replaced = {*(path.name for path in validation_files(dataset)), index.path.name, MANIFEST}
    for path in dataset.directory.iterdir():
        if path.name not in replaced and path.is_file():
            (directory / path.name).symlink_to(path.resolve())
    rows, names = np.array(index.rows[kept]), list(index.names())[kept]
    write_index(directory, "val", rows, names)
    splits = {split: dict(totals) for split, totals in dataset.manifest["splits"].items()}
    splits["val"] |= {
        "documents": len(rows),
        "tokens": int(rows["tokens"].sum()) + len(rows),
        "bytes": int(rows["bytes"].sum()),
        "first_document": splits["val"]["first_document"] + kept.start,
        "files": [_tail(dataset, dataset.manifest["splits"]["val"]["files"], begin, directory)],
    }
    byte_files = dataset.manifest["byte_files"]
    byte_files = [_tail(dataset, byte_files, begin, directory)] if byte_files else []
    counts = [read_shard(directory / name).sum(dtype=np.int64) for name in byte_files]
    splits["val"]["charged"] = int(counts[0]) if counts else splits["val"]["bytes"]
    content = {key: value for key, value in dataset.manifest.items() if key not in ("format", "files", "digest")}
    write_manifest(directory, content | {"splits": splits, "byte_files": byte_files})
    return Dataset(directory)


def _tail(dataset: Dataset, files: list[str], begin: int, directory: Path) -> str:
    """Write the values from `begin` on of a stream of shards as one shard, under the name of its first."""
    values = np.concatenate([read_shard(dataset.directory / name) for name in files])
    write_shard(directory / files[0], values[begin:])
    return files[0]
