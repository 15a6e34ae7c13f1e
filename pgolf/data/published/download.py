"""Fetching a published variant: pinned to one commit, resumable by file, checked file by file, then described.

The files gather in a hidden directory beside the final one; a name in it stands for a file that passed its checks. At
the end the manifest is written and the directory renamed, so that the final name stands for a complete data set.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pgolf.console import Console
from pgolf.data.encoding.frontend import MODEL_FILE
from pgolf.data.manifest import MANIFEST
from pgolf.data.published.checks import check_tokens, check_written
from pgolf.data.published.hub import Hub, HubError, RemoteFile, Wanted, fetch_all
from pgolf.data.published.layout import Layout, manifest_path, read_layout
from pgolf.data.shards import read_shard
from pgolf.errors import UserError
from pgolf.files import read_json, write_json

PUBLISHED_MANIFEST = "published.json"  # the repository's own manifest, kept under another name than this project's
PIN, STAGING = ".pin.json", ".hub"
SPARE_BYTES = 500_000_000  # Free space beyond the files themselves: the index of documents, and the file system's own.


@dataclass(frozen=True)
class Source:
    """What determines a download apart from the number of shards; see PublishedData."""

    repository: str
    revision: str | None
    root: str
    variant: str


@dataclass(frozen=True)
class Fetched:
    """What a finished fetch knows: the commit, the layout, and local name -> the remote file it is."""

    source: Source
    commit: str
    layout: Layout
    files: dict[str, RemoteFile]

    @property
    def has_sidecar(self) -> bool:
        """Whether there are byte counts beside the validation shards."""
        return any("_bytes_" in name for name in self.files)

    @property
    def origin(self) -> dict[str, Any]:
        """JSON values for the manifest: where every file came from."""
        return vars(self.source) | {
            "commit": self.commit,
            "train_shards": sum("_train_" in name for name in self.files),
            "train_shards_published": self.layout.train_shards,
            "files": {name: vars(remote) for name, remote in sorted(self.files.items())},
        }


def fetch(
    source: Source,
    train_shards: int,
    vocab_size: int,
    working: Path,
    siblings: Mapping[Path, dict[str, Any]],
    accept_tokenizer: Callable[[Path, Layout, bool], None],
    accept_validation: Callable[[Path, bool], None],
    connections: int,
    connect: Callable[[], Hub],
    console: Console,
) -> Fetched:
    """Bring every file of the variant into `working`; what is there already, or in a sibling, is not fetched again.

    Args:
        vocab_size: ids of a shard are below it.
        siblings: complete downloads of the same source with other numbers of shards -> the origin in their manifest.
        accept_tokenizer: called with `working`, the layout and whether there are byte counts, before any shard is
            fetched; raises UserError.
        accept_validation: called with `working` and whether there are byte counts, before any training shard is.
        connect: opens the hub; not called when a sibling holds everything.
    """
    try:
        working.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write in {working.parent} (paths.data): {error.strerror or error}.") from error
    local = _from_sibling(source, train_shards, working, siblings, console)
    if local is not None:
        accept_tokenizer(working, local.layout, local.has_sidecar)
        return local
    hub = connect()
    commit = _pin(source, working, siblings, hub, console)
    gathering = _Gathering(hub, commit, working, siblings, connections, console)
    files = {PUBLISHED_MANIFEST: gathering.listed(manifest_path(source.root))}
    gathering.gather(files, f"Fetching the manifest of {source.repository}", {})
    layout = _layout(working, source)
    if train_shards > layout.train_shards:
        raise UserError(
            f"data.train_shards={train_shards}, but {source.repository} has {layout.train_shards} training shards of "
            f"{source.variant}."
        )
    if layout.tokenizer is not None:
        files[MODEL_FILE] = gathering.listed(layout.tokenizer)
        gathering.gather(files, f"Fetching the tokenizer of {source.variant}", {})
    shards, has_sidecar = gathering.shards(layout, train_shards)
    accept_tokenizer(working, layout, has_sidecar)
    checks = _checks(shards, vocab_size)
    files |= {name: remote for name, remote in shards.items() if "_train_" not in name}
    gathering.gather(files, f"Downloading {source.variant}, validation (MB)", checks)
    _check_sidecars(working, layout, has_sidecar)
    accept_validation(working, has_sidecar)
    files |= shards
    gathering.gather(files, f"Downloading {source.variant}, training (MB)", checks)
    return Fetched(source, commit, layout, files)


def clear_scaffold(working: Path) -> None:
    """Remove what only a download under way needs."""
    shutil.rmtree(working / STAGING, ignore_errors=True)
    (working / PIN).unlink(missing_ok=True)


def siblings_of(root: Path, name: str, source: Source) -> dict[Path, dict[str, Any]]:
    """Complete downloads of `source` below `root`, the largest first, with the origin in their manifest."""
    found: dict[Path, dict[str, Any]] = {}
    for path in sorted(root.glob(f"{name}-*/{MANIFEST}")):
        origin = read_json(path).get("origin")
        if isinstance(origin, dict) and vars(source).items() <= origin.items():
            found[path.parent] = origin
    return dict(sorted(found.items(), key=lambda item: -len(item[1]["files"])))


def _from_sibling(
    source: Source, train_shards: int, working: Path, siblings: Mapping[Path, dict[str, Any]], console: Console
) -> Fetched | None:
    """The files out of one larger download, without a network; None when there is none."""
    for directory, origin in siblings.items():
        layout = _layout(directory, source)
        files = {name: RemoteFile(**remote) for name, remote in origin["files"].items()}
        asked, surplus = set(layout.train_files(train_shards)), set(layout.train_files(layout.train_shards))
        if asked <= set(files):
            files = {name: remote for name, remote in files.items() if name in asked or name not in surplus}
            console.say(f"All of it is in {directory} already: nothing is fetched.")
            for name, remote in files.items():
                if not _is_here(working / name, remote):
                    _link(directory / name, working / name, console)
            return Fetched(source, str(origin["commit"]), layout, files)
    return None


def _layout(directory: Path, source: Source) -> Layout:
    where = f"{source.repository}'s manifest"
    return read_layout(read_json(directory / PUBLISHED_MANIFEST), source.root, source.variant, where)


def _pin(source: Source, working: Path, siblings: Mapping[Path, dict[str, Any]], hub: Hub, console: Console) -> str:
    """The commit that every file is fetched from: the one that was begun with, or a sibling's, or the newest."""
    pin = working / PIN
    if pin.is_file():
        commit = str(read_json(pin)["commit"])
        console.say(f"Continuing at commit {commit[:12]} of {source.repository}.")
        return commit
    if siblings:
        directory, origin = next(iter(siblings.items()))
        commit = str(origin["commit"])
        console.say(f"Keeping to commit {commit[:12]} of {source.repository}, which {directory} came from.")
    else:
        commit = hub.resolve(source.revision)
        console.say(f"{source.repository} is at commit {commit[:12]}.")
    write_json(pin, {"commit": commit})
    return commit


@dataclass(frozen=True)
class _Gathering:
    """A fetch under way: where from, where to, and what can be shared with earlier ones."""

    hub: Hub
    commit: str
    working: Path
    siblings: Mapping[Path, dict[str, Any]]
    connections: int
    console: Console

    def listed(self, path: str) -> RemoteFile:
        """The remote file at a path."""
        listing = self.hub.listing(self.commit, path.rpartition("/")[0])
        if path not in listing:
            raise HubError(f"{self.hub.repository} has no file {path}; check data.root and data.variant.")
        return listing[path]

    def shards(self, layout: Layout, train_shards: int) -> tuple[dict[str, RemoteFile], bool]:
        """Local name -> remote file of the shards that are asked for, and whether the variant has byte counts."""
        listing = {Path(path).name: one for path, one in self.hub.listing(self.commit, layout.folder).items()}
        has_sidecar = any(name.startswith("fineweb_val_bytes_") for name in listing)
        names = layout.val_files() + (layout.val_files("val_bytes") if has_sidecar else [])
        names += layout.train_files(train_shards)
        missing = [name for name in names if name not in listing]
        if missing:
            raise HubError(
                f"{self.hub.repository} lacks {len(missing)} of the shards that its manifest promises in "
                f"{layout.folder}, the first is {missing[0]}."
            )
        return {name: listing[name] for name in names}, has_sidecar

    def gather(self, files: dict[str, RemoteFile], title: str, checks: Mapping[str, Callable[[Path], None]]) -> None:
        """Bring the missing ones of `files` into the working directory: linked from siblings, or fetched."""
        missing = {name: remote for name, remote in files.items() if not _is_here(self.working / name, remote)}
        shared = dict(_shared(missing, self.siblings))
        for name, path in shared.items():
            _link(path, self.working / name, self.console)
        wanted = [
            Wanted(remote, self.working / name, checks.get(name, _accept))
            for name, remote in missing.items()
            if name not in shared
        ]
        if not wanted:
            return
        _refuse_full_disk(self.working, sum(one.remote.bytes for one in wanted))
        try:
            staging = self.working / STAGING
            fetch_all(self.hub, self.commit, wanted, staging, self.connections, self.console, title)
        except HubError as error:
            kept = [remote for name, remote in files.items() if _is_here(self.working / name, remote)]
            size = sum(one.bytes for one in kept) / 1e6
            raise HubError(
                f"{error} {len(kept)} of {len(files)} files ({size:,.0f} MB) are kept; the same command continues."
            ) from error


def _is_here(path: Path, remote: RemoteFile) -> bool:
    return path.is_file() and path.stat().st_size == remote.bytes


def _shared(missing: dict[str, RemoteFile], siblings: Mapping[Path, dict[str, Any]]) -> Iterator[tuple[str, Path]]:
    """(name, path) of the missing files that a sibling has with the same hash."""
    for name, remote in missing.items():
        for directory, origin in siblings.items():
            if origin["files"].get(name) == vars(remote) and _is_here(directory / name, remote):
                yield name, directory / name
                break


def _link(path: Path, destination: Path, console: Console) -> None:
    """Let two data sets share a file; copy it, and say so, on a file system that cannot."""
    destination.unlink(missing_ok=True)
    try:
        os.link(path, destination)
    except OSError as error:
        console.say(f"{path} cannot be shared ({error.strerror}): it is copied, and takes its space twice.")
        temporary = destination.with_name(f".{destination.name}.tmp")
        try:
            shutil.copyfile(path, temporary)
            os.replace(temporary, destination)
        except OSError as failed:
            temporary.unlink(missing_ok=True)
            raise UserError(f"cannot copy {path} to {destination.parent}: {failed.strerror or failed}.") from failed


def _refuse_full_disk(working: Path, needed: int) -> None:
    free = shutil.disk_usage(working).free
    if free < needed + SPARE_BYTES:
        raise UserError(
            f"{needed / 1e9:.1f} GB are still to be fetched, but only {free / 1e9:.1f} GB are free below "
            f"{working.parent}; free some space, set paths.data, or ask for fewer shards (data.train_shards)."
        )


def _accept(path: Path) -> None:
    """No check beyond size and hash."""


def _checks(shards: Mapping[str, RemoteFile], vocab_size: int) -> dict[str, Callable[[Path], None]]:
    tokens = partial(check_tokens, vocab_size=vocab_size)
    return {name: check_written if "_bytes_" in name else tokens for name in shards}


def _check_sidecars(working: Path, layout: Layout, has_sidecar: bool) -> None:
    if not has_sidecar:
        return
    for tokens, sidecar in zip(layout.val_files(), layout.val_files("val_bytes"), strict=True):
        counted, expected = len(read_shard(working / sidecar)), len(read_shard(working / tokens))
        if counted != expected:
            raise UserError(f"{sidecar} has {counted} byte counts for the {expected} tokens of {tokens}.")
