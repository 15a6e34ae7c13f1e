"""Access to the hub, against a hub on this machine: listings, transfers, interruptions, damage, refusals."""

import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgolf.console import Silent
from pgolf.data.published.hub import Hub, HubError, RemoteFile, Wanted, fetch_all
from pgolf.errors import UserError
from tests.data.fake_hub import FakeHub, git_sha1

pytest.importorskip("huggingface_hub", reason="the extra `hub` is not installed")

REPOSITORY = "someone/some-data"
FILES = {f"root/{index}.bin": bytes([index]) * (5000 + index) for index in range(9)} | {
    "root/manifest.json": b'{"datasets": []}',
    "root/inner/a.bin": b"inner",
    "other.txt": b"other",
}


@pytest.fixture
def fake() -> Iterator[FakeHub]:
    with FakeHub(REPOSITORY) as hub:
        hub.publish(FILES)
        yield hub


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library waits between its own attempts; the tests do not."""
    monkeypatch.setattr(time, "sleep", lambda _: None)


def wanted(listing: dict[str, RemoteFile], to: Path, check=lambda path: None) -> list[Wanted]:
    return [Wanted(one, to / Path(one.path).name, check) for one in listing.values()]


def fetch(fake: FakeHub, tmp_path: Path, check=lambda path: None, connections: int = 3) -> None:
    hub = Hub(REPOSITORY, fake.endpoint)
    listing = {
        path: one for path, one in hub.listing(fake.newest, "root").items() if not (tmp_path / Path(path).name).exists()
    }
    fetch_all(hub, fake.newest, wanted(listing, tmp_path, check), tmp_path / ".hub", connections, Silent(), "fetching")


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.is_file()}


EXPECTED = {Path(path).name for path in FILES if path.count("/") == 1}


def test_a_listing_has_every_page_and_no_other_folder(fake):
    listing = Hub(REPOSITORY, fake.endpoint).listing(fake.newest, "root")
    assert {path: one.bytes for path, one in listing.items()} == {
        path: len(data) for path, data in FILES.items() if path.count("/") == 1
    }
    assert listing["root/manifest.json"].git_sha1 == git_sha1(FILES["root/manifest.json"])
    assert listing["root/manifest.json"].sha256 is None and listing["root/0.bin"].git_sha1 is None


def test_files_arrive_whole_and_once(fake, tmp_path):
    fetch(fake, tmp_path)
    assert names(tmp_path) == EXPECTED
    for path, data in FILES.items():
        if path.count("/") == 1:
            assert (tmp_path / Path(path).name).read_bytes() == data
    assert len(fake.transfers()) == len(EXPECTED)


def test_a_commit_is_pinned_while_the_repository_goes_on(fake, tmp_path):
    hub, before = Hub(REPOSITORY, fake.endpoint), fake.newest
    assert hub.resolve(None) == before
    fake.publish(FILES | {"root/0.bin": b"newer"})
    assert hub.resolve(None) != before and hub.resolve(before) == before
    listing = hub.listing(before, "root")
    fetch_all(hub, before, wanted(listing, tmp_path), tmp_path / ".hub", 2, Silent(), "fetching")
    assert (tmp_path / "0.bin").read_bytes() == FILES["root/0.bin"]


def test_an_interrupted_transfer_goes_on_where_it_stopped(fake, tmp_path):
    fake.faults["root/3.bin"] = ["closed", "closed"]
    fetch(fake, tmp_path)
    assert (tmp_path / "3.bin").read_bytes() == FILES["root/3.bin"]
    assert len([path for path in fake.transfers() if path.endswith("3.bin")]) == 3


@pytest.mark.parametrize("fault", ["corrupt", "zeros"])
@pytest.mark.parametrize("name", ["3.bin", "manifest.json"])
def test_a_damaged_file_is_fetched_again_once(fake, tmp_path, fault, name):
    fake.faults[f"root/{name}"] = [fault]
    fetch(fake, tmp_path)
    assert names(tmp_path) == EXPECTED and (tmp_path / name).read_bytes() == FILES[f"root/{name}"]


def test_a_file_that_stays_damaged_is_refused_and_the_others_kept(fake, tmp_path):
    fake.faults["root/3.bin"] = ["corrupt", "corrupt"]
    with pytest.raises(HubError, match=r"root/3\.bin came damaged twice: 3\.bin does not have the hash"):
        fetch(fake, tmp_path, connections=1)
    kept = names(tmp_path)
    assert "3.bin" not in kept and kept <= EXPECTED
    before = len(fake.transfers())
    fetch(fake, tmp_path)
    assert names(tmp_path) == EXPECTED and len(fake.transfers()) - before == len(EXPECTED - kept)


def test_the_content_check_of_the_caller_is_made_before_the_name_appears(fake, tmp_path):
    def check(path: Path) -> None:
        if path.name == "5.bin":
            raise UserError("five is not wanted.")

    with pytest.raises(HubError, match="five is not wanted"):
        fetch(fake, tmp_path, check)
    assert "5.bin" not in names(tmp_path)


def test_a_missing_file_a_missing_revision_and_a_missing_repository_are_told_apart(fake, tmp_path):
    hub = Hub(REPOSITORY, fake.endpoint)
    with pytest.raises(HubError, match="no such revision.*data.revision"):
        hub.resolve("f" * 40)
    with pytest.raises(HubError, match="no data set repository someone/else"):
        Hub("someone/else", fake.endpoint).resolve(None)
    with pytest.raises(HubError, match="does not have what was asked for.*nowhere"):
        hub.listing(fake.newest, "nowhere")
    fake.faults["root/2.bin"] = ["missing"]
    with pytest.raises(HubError, match=r"does not have what was asked for.*root/2\.bin"):
        fetch(fake, tmp_path)


def test_a_hub_that_is_down_or_unreachable_is_said_in_a_sentence(fake, tmp_path):
    hub = Hub(REPOSITORY, fake.endpoint)
    listing = hub.listing(fake.newest, "root")
    fake.down = True
    with pytest.raises(HubError, match="503"):
        hub.resolve(None)
    with pytest.raises(HubError, match=r"fetching root/.* failed: .*503"):
        fetch_all(hub, fake.newest, wanted(listing, tmp_path), tmp_path / ".hub", 2, Silent(), "fetching")
    assert names(tmp_path) == set()
    with pytest.raises(HubError, match=r"reading its newest commit failed: .*refused"):
        Hub(REPOSITORY, "http://127.0.0.1:9").resolve(None)


def test_the_first_error_gives_up_what_is_under_way(fake, tmp_path):
    many = FILES | {f"root/big{index}.bin": bytes([index]) * 3_000_000 for index in range(12)}
    fake.publish(many)
    begun = threading.Event()

    def check(path: Path) -> None:
        begun.set()
        raise UserError("refused.")

    with pytest.raises(HubError, match="refused"):
        fetch(fake, tmp_path, check, connections=2)
    assert begun.is_set() and len(fake.transfers()) < len(many)


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"pip install 'pgolf\[hub\]'"):
        Hub(REPOSITORY)
