"""A hub on this machine: the endpoints that huggingface_hub calls, over files in memory, with faults on demand."""

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

PAGE = 4  # entries of a listing per page, so that listings have several
LARGE_SUFFIXES = (".bin", ".model")  # what the hub keeps outside git, by SHA-256, behind a redirect


class FakeHub:
    """Serve one data set repository; `with FakeHub(repository) as hub`, then `hub.publish(files)`.

    faults: path -> what its next transfers do, one each: "closed" (half of it, then the connection ends), "corrupt",
    "zeros", "missing". down: every request is answered with 503. log: (method, path) of every request.
    """

    def __init__(self, repository: str):
        self.repository = repository
        self.commits: dict[str, dict[str, bytes]] = {}
        self.newest = ""
        self.faults: dict[str, list[str]] = {}
        self.down = False
        self.log: list[tuple[str, str]] = []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.endpoint = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> "FakeHub":
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def publish(self, files: dict[str, bytes]) -> str:
        """Make these files the newest commit."""
        content = b"".join(path.encode() + data for path, data in sorted(files.items()))
        self.newest = hashlib.sha1(content).hexdigest()
        self.commits[self.newest] = dict(files)
        return self.newest

    def transfers(self) -> list[str]:
        """The paths whose content was asked for, in order."""
        return [path for method, path in self.log if method == "GET" and not path.startswith("/api/")]


def git_sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _entry(path: str, data: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": git_sha1(data)}
    if path.endswith(LARGE_SUFFIXES):
        entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
    return entry


def _handler(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # else every answer waits 40 ms for an acknowledgement

        def log_message(self, *_: object) -> None:
            """Silence."""

        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            self._answer()

        def _answer(self) -> None:
            url = urlsplit(self.path)
            path = unquote(url.path)
            hub.log.append((self.command, path))
            if hub.down:
                return self._send(503, b"the hub is down")
            api, files = f"/api/datasets/{hub.repository}", f"/datasets/{hub.repository}/resolve/"
            if path == api or path.startswith(f"{api}/revision/"):
                return self._info(path.rpartition("/")[2] if "/revision/" in path else "main")
            if path.startswith(f"{api}/tree/"):
                commit, _, folder = path.removeprefix(f"{api}/tree/").partition("/")
                return self._tree(commit, folder, int(parse_qs(url.query).get("cursor", ["0"])[0]))
            if path.startswith(files):
                commit, _, name = path.removeprefix(files).partition("/")
                return self._resolve(commit, name)
            if path.startswith("/storage/"):
                commit, _, name = path.removeprefix("/storage/").partition("/")
                return self._content(name, hub.commits[commit][name])
            return self._send(404, b"", {"X-Error-Code": "RepoNotFound"})

        def _info(self, revision: str) -> None:
            commit = hub.newest if revision == "main" else revision
            if commit not in hub.commits:
                return self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
            siblings = [{"rfilename": path} for path in sorted(hub.commits[commit])]
            info = {"_id": "0", "id": hub.repository, "sha": commit, "private": False, "tags": [], "siblings": siblings}
            return self._send(200, json.dumps(info).encode(), {"Content-Type": "application/json"})

        def _tree(self, commit: str, folder: str, cursor: int) -> None:
            inside = re.compile(re.escape(folder) + "/[^/]+")
            found = [_entry(p, d) for p, d in sorted(hub.commits[commit].items()) if inside.fullmatch(p)]
            if not found:
                return self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
            headers = {"Content-Type": "application/json"}
            if cursor + PAGE < len(found):
                here = f"{hub.endpoint}/api/datasets/{hub.repository}/tree/{commit}/{quote(folder)}"
                headers["Link"] = f'<{here}?cursor={cursor + PAGE}>; rel="next"'
            return self._send(200, json.dumps(found[cursor : cursor + PAGE]).encode(), headers)

        def _resolve(self, commit: str, name: str) -> None:
            data = hub.commits[commit].get(name)
            if data is None or (hub.faults.get(name) or [None])[0] == "missing":
                return self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
            headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
            if not name.endswith(LARGE_SUFFIXES):
                return self._content(name, data, headers | {"ETag": f'"{git_sha1(data)}"'})
            headers["X-Linked-Etag"] = f'"{hashlib.sha256(data).hexdigest()}"'
            headers["X-Linked-Size"] = str(len(data))
            # Another host name: what the library follows by itself are redirects within the hub.
            headers["Location"] = f"{hub.endpoint.replace('127.0.0.1', 'localhost')}/storage/{commit}/{quote(name)}"
            return self._send(302, b"", headers)

        def _content(self, name: str, data: bytes, headers: dict[str, str] | None = None) -> None:
            asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
            start = int(asked[1]) if asked else 0
            fault = hub.faults[name].pop(0) if self.command == "GET" and hub.faults.get(name) else None
            if fault == "corrupt":
                data = data[:-1] + bytes([data[-1] ^ 255])
            elif fault == "zeros":
                data = bytes(len(data))
            headers = dict(headers or {})
            if asked:
                headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            self._send(206 if asked else 200, data[start:], headers, closed=fault == "closed")

        def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None, closed: bool = False) -> None:
            self.send_response(status)
            for key, value in (headers or {}).items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body[: len(body) // 2] if closed else body)
            if closed:
                self.close_connection = True

    return Handler
