"""Files of a data set repository on the Hugging Face hub: listed at one commit, fetched, and compared with its hashes.

The library does the transport: retries, ranges after an interruption, mirrors and tokens from its own environment
variables (HF_ENDPOINT, HF_TOKEN). What it does not do is compare a file with the hash that the hub lists.
"""

import contextlib
import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgolf.console import Console
from pgolf.errors import UserError
from pgolf.files import sha256_file

REPOSITORY_TYPE = "dataset"
MEGABYTE = 1_000_000
SECONDS_BETWEEN_UPDATES = 0.2


class HubError(UserError):
    """The hub could not be reached, refused, or gave something else than it lists."""


@dataclass(frozen=True)
class RemoteFile:
    """One file of a repository at a commit.

    Attributes:
        path: in the repository.
        bytes: its size.
        sha256: of its content, for large files; None for those that git itself holds.
        git_sha1: of its git object, for those; None for large files.
    """

    path: str
    bytes: int
    sha256: str | None
    git_sha1: str | None

    def refuse_difference(self, path: Path) -> None:
        """UserError when the file at `path` is not this one, by size and by hash."""
        size = path.stat().st_size
        if size != self.bytes:
            raise UserError(f"{path.name} has {size} bytes, the hub lists {self.bytes}.")
        if self.sha256 is not None:
            same = sha256_file(path) == self.sha256
        else:
            content = path.read_bytes()  # git's own files are small
            same = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == self.git_sha1
        if not same:
            raise UserError(f"{path.name} does not have the hash that the hub lists.")


@dataclass(frozen=True)
class Wanted:
    """A remote file, where it goes, and a check of its content that raises UserError."""

    remote: RemoteFile
    destination: Path
    check: Callable[[Path], None]


class Hub:
    """One data set repository.

    Args:
        repository: owner/name.
        endpoint: address of the hub; None: the library's own (HF_ENDPOINT).

    UserError when the library is not installed; HubError, in a sentence, for whatever the hub or the network refuse.
    """

    def __init__(self, repository: str, endpoint: str | None = None):
        library = _library()
        self.repository, self.endpoint = repository, endpoint
        self.api = library.HfApi(endpoint=endpoint, library_name="pgolf")

    def resolve(self, revision: str | None) -> str:
        """The commit of a branch, tag or commit; None: of the newest state."""
        with self._translated("reading its newest commit" if revision is None else f"looking for {revision!r}"):
            info = self.api.dataset_info(self.repository, revision=revision)
        if info.sha is None:
            raise HubError(f"the hub names no commit for {self.repository}.")
        return str(info.sha)

    def listing(self, commit: str, folder: str) -> dict[str, RemoteFile]:
        """The files directly in a folder, by path."""
        found = {}
        with self._translated(f"listing {folder}"):
            entries = self.api.list_repo_tree(self.repository, folder, revision=commit, repo_type=REPOSITORY_TYPE)
            for entry in entries:
                if hasattr(entry, "size"):  # a folder has none
                    large = entry.lfs.sha256 if entry.lfs is not None else None
                    git_sha1 = entry.blob_id if large is None else None
                    found[entry.path] = RemoteFile(entry.path, entry.size, large, git_sha1)
        return found

    def fetch(self, path: str, commit: str, folder: Path, heard: Callable[[int], None], again: bool = False) -> Path:
        """Fetch one file to `folder`/`path`; a finished file that is there is kept unless `again`.

        heard: called with each number of bytes that came (negative: so many are fetched anew).
        """
        from huggingface_hub import hf_hub_download

        with self._translated(f"fetching {path}"):
            return Path(
                hf_hub_download(
                    self.repository,
                    path,
                    repo_type=REPOSITORY_TYPE,
                    revision=commit,
                    local_dir=folder,
                    endpoint=self.endpoint,
                    force_download=again,
                    tqdm_class=_listener(heard),
                )
            )

    @contextlib.contextmanager
    def _translated(self, doing: str) -> Iterator[None]:
        """Turn what the library raises inside the block into a HubError."""
        from huggingface_hub import errors

        try:
            yield
        except errors.GatedRepoError as error:
            raise HubError(
                f"{self.repository} asks for an agreement before it gives its files: accept it on its page and log in "
                "with `hf auth login`."
            ) from error
        except errors.RepositoryNotFoundError as error:
            raise HubError(
                f"the hub has no data set repository {self.repository}, or it is private (`hf auth login`); "
                "check data.repository."
            ) from error
        except errors.RevisionNotFoundError as error:
            raise HubError(f"{self.repository} has no such revision ({doing}); check data.revision.") from error
        except errors.RemoteEntryNotFoundError as error:
            raise HubError(
                f"{self.repository} does not have what was asked for ({doing}); check data.root and data.variant."
            ) from error
        except (errors.HTTPError, OSError, RuntimeError, ValueError) as error:
            raise HubError(f"{self.repository}: {doing} failed: {_reason(error)}.") from error


def fetch_all(
    hub: Hub, commit: str, wanted: Sequence[Wanted], staging: Path, connections: int, console: Console, title: str
) -> None:
    """Fetch files, a few at a time; each appears at its destination only after all its checks.

    A file that fails its checks is fetched once more. After the first error no other file is begun, what is under way
    is given up, and the error is raised; the files that were finished stay.
    """
    total = sum(one.remote.bytes for one in wanted)
    transfers = [_Transfer(hub, commit, one, staging) for one in wanted]
    pool = ThreadPoolExecutor(connections, "download")
    stop = threading.Event()
    try:
        with console.task(title, max(1, total // MEGABYTE)) as task:
            futures = {pool.submit(transfer.run, stop) for transfer in transfers}
            while futures:
                finished, futures = wait(futures, SECONDS_BETWEEN_UPDATES, FIRST_COMPLETED)
                for future in finished:
                    future.result()
                complete = sum(transfer.finished for transfer in transfers)
                bytes_here = sum(transfer.bytes_here for transfer in transfers)
                done = max(1, total // MEGABYTE) if not futures else bytes_here // MEGABYTE
                task.update(done, files=f"{complete}/{len(wanted)}")
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)
    for transfer in transfers:
        if transfer.repaired is not None:
            console.say(f"{transfer.wanted.remote.path} came damaged and was fetched again: {transfer.repaired}")


class _Transfer:
    """One file under way."""

    def __init__(self, hub: Hub, commit: str, wanted: Wanted, staging: Path):
        self.hub, self.commit, self.wanted, self.staging = hub, commit, wanted, staging
        self.bytes_here, self.finished = 0, False
        self.repaired: str | None = None  # what was wrong with the first copy

    def run(self, stop: threading.Event) -> None:
        """Fetch, check, move to the destination."""

        def heard(number: int) -> None:
            if stop.is_set():
                raise HubError("the download was given up.")
            self.bytes_here += number

        if stop.is_set():
            return
        remote = self.wanted.remote
        for again in (False, True):
            self.bytes_here = 0
            path = self.hub.fetch(remote.path, self.commit, self.staging, heard, again)
            try:
                remote.refuse_difference(path)
                self.wanted.check(path)
                break
            except UserError as error:
                path.unlink()
                if again:
                    raise HubError(
                        f"{self.hub.repository}: {remote.path} came damaged twice: {error} Its owner should know."
                    ) from error
                self.repaired = str(error)
        _settle(path, self.wanted.destination)
        self.bytes_here, self.finished = remote.bytes, True


def _settle(path: Path, destination: Path) -> None:
    """Rename a checked file, its content being on the disk first: after a power cut it is whole or not there."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
    os.replace(path, destination)


def _library() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise UserError(
            "downloading published data needs the library huggingface_hub: pip install 'pgolf[hub]'."
        ) from error
    return huggingface_hub


def _listener(heard: Callable[[int], None]) -> type:
    """A progress bar class for the library that draws nothing and passes the numbers on."""
    from tqdm import tqdm

    class Listener(tqdm):  # type: ignore[type-arg,unused-ignore]
        def __init__(self, *arguments: Any, **settings: Any):
            super().__init__(*arguments, **(settings | {"disable": True}))

        def update(self, n: float | None = 1) -> None:
            heard(int(n or 0))

        def update_transfer(self, n: float | None = 1) -> None:
            """The library's second bar, of bytes before they are unpacked: not counted twice."""

        def set_transfer_postfix_str(self, *arguments: Any, **settings: Any) -> None:
            """Text beside that bar."""

    return Listener


def _reason(error: BaseException) -> str:
    """The first line of the innermost cause: the library wraps a refused connection several times."""
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
