"""A small hub on 127.0.0.1 that the real client talks to: model info, tree, resolve, and the faults of a real one."""

import contextlib
import hashlib
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

LARGE = (".safetensors", ".bin", ".model", ".spm")  # kept by sha256, as the hub keeps what is in LFS


@dataclass
class Fault:
    """What goes wrong for requests that match: a status, an answer cut after so many bytes, or a delay."""

    pattern: str
    status: int = 0
    code: str = ""
    cut: int | None = None
    seconds: float = 0.0
    times: int = 10**6
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Repository:
    """Files by commit, and the commits of branches and tags."""

    commits: dict[str, dict[str, bytes]]
    refs: dict[str, str]
    token: str = ""
    gated: bool = False

    def commit_of(self, revision: str) -> str | None:
        revision = unquote(revision)
        return self.refs.get(revision) or (revision if revision in self.commits else None)


def blob_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing: a client that gives up is part of the tests."""


class Hub:
    """Serves repositories until closed; `requests` is what it was asked, `faults` what goes wrong."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[str] = []
        self.faults: list[Fault] = []
        self.connections: list[socket.socket] = []
        self.server = Server(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self) -> None:
        """Refuse every further connection, and end those that are open."""
        self.server.shutdown()
        self.server.server_close()
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def add(self, name: str, folder: Path | dict[str, bytes], revision: str = "main") -> str:
        """Put the files of a folder under a branch as a new commit; returns the commit."""
        files = folder if isinstance(folder, dict) else {file.name: file.read_bytes() for file in folder.iterdir()}
        text = repr(sorted((key, blob_id(data)) for key, data in files.items()))
        commit = hashlib.sha1(text.encode()).hexdigest()
        repository = self.repositories.setdefault(name, Repository({}, {}))
        repository.commits[commit] = files
        repository.refs[revision] = commit
        return commit

    def fail(self, pattern: str = ".", **fault: Any) -> None:
        self.faults.append(Fault(pattern, **fault))

    def asked(self, pattern: str) -> list[str]:
        return [line for line in self.requests if re.search(pattern, line)]

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                hub.connections.append(self.connection)

            def log_message(self, *arguments: Any) -> None:
                """Nothing: the requests are kept instead."""

            def do_GET(self) -> None:
                answer(hub, self)

            do_HEAD = do_POST = do_GET  # noqa: N815

        return Handler


Handler = BaseHTTPRequestHandler


def answer(hub: Hub, handler: Handler) -> None:
    path = urlsplit(handler.path).path
    line = f"{handler.command} {path}"
    hub.requests.append(line)
    body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
    fault = next((each for each in hub.faults if each.times > 0 and re.search(each.pattern, line)), None)
    if fault is not None:
        fault.times -= 1
        time.sleep(fault.seconds)
        if fault.status:
            headers = {"X-Error-Code": fault.code, **fault.headers} if fault.code else fault.headers
            return send(handler, fault.status, b"{}", headers)
    cut = fault.cut if fault is not None else None
    for pattern, serve in ROUTES:
        match = re.fullmatch(pattern, path)
        if match:
            name = match["name"]
            repository = hub.repositories.get(name)
            if repository is None or (repository.token and not has_token(handler, repository)):
                return send(handler, 401, b"{}", {"X-Error-Code": "RepoNotFound"})
            commit = repository.commit_of(match.groupdict().get("revision") or "main")
            if commit is None:
                return send(handler, 404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            return serve(handler, name, repository, commit, match, body, cut)
    return send(handler, 404, b"{}", {})


def has_token(handler: Handler, repository: Repository) -> bool:
    return handler.headers.get("Authorization") == f"Bearer {repository.token}"


def send(handler: Handler, status: int, body: bytes, headers: dict[str, str], cut: int | None = None) -> None:
    handler.send_response(status)
    for name, value in {"Content-Length": str(len(body)), **headers}.items():
        handler.send_header(name, value)
    handler.end_headers()
    if handler.command == "HEAD":
        return
    handler.wfile.write(body if cut is None else body[:cut])
    if cut is not None:
        handler.wfile.flush()
        handler.close_connection = True
        # closed with a reset, as where a proxy gives up
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def entry(name: str, data: bytes) -> dict[str, Any]:
    found: dict[str, Any] = {"type": "file", "path": name, "size": len(data), "oid": blob_id(data)}
    if name.endswith(LARGE):
        found["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
    return found


def send_json(handler: Handler, data: Any, cut: int | None) -> None:
    send(handler, 200, json.dumps(data).encode(), {"Content-Type": "application/json"}, cut)


def info(handler: Handler, name: str, repository: Repository, commit: str, match: Any, body: bytes, cut: Any) -> None:
    files = [{"rfilename": file} for file in sorted(repository.commits[commit])]
    gated = "auto" if repository.gated else False
    about = {"_id": "0", "id": name, "modelId": name, "sha": commit, "siblings": files, "gated": gated}
    send_json(handler, {**about, "private": False, "tags": [], "downloads": 0, "likes": 0}, cut)


def tree(handler: Handler, name: str, repository: Repository, commit: str, match: Any, body: bytes, cut: Any) -> None:
    send_json(handler, [entry(file, data) for file, data in sorted(repository.commits[commit].items())], cut)


def paths(handler: Handler, name: str, repository: Repository, commit: str, match: Any, body: bytes, cut: Any) -> None:
    asked = json.loads(body)["paths"] if body.startswith(b"{") else re.findall(r"paths=([^&]+)", unquote(body.decode()))
    files = repository.commits[commit]
    send_json(handler, [entry(file, files[file]) for file in asked if file in files], cut)


def resolve(
    handler: Handler, name: str, repository: Repository, commit: str, match: Any, body: bytes, cut: Any
) -> None:
    headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
    if repository.gated and not has_token(handler, repository):
        return send(handler, 403, b"{}", {**headers, "X-Error-Code": "GatedRepo"})
    data = repository.commits[commit].get(unquote(match["file"]))
    if data is None:
        return send(handler, 404, b"{}", {**headers, "X-Error-Code": "EntryNotFound"})
    headers["ETag"] = f'"{blob_id(data)}"'
    if match["file"].endswith(LARGE):
        headers |= {"X-Linked-Etag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Linked-Size": str(len(data))}
    wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", handler.headers.get("Range", ""))
    if wanted:
        start, end = int(wanted[1]), int(wanted[2] or len(data) - 1)
        headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
        return send(handler, 206, data[start : end + 1], headers, cut)
    return send(handler, 200, data, headers, cut)


NAME = r"(?P<name>[^/]+/[^/]+)"
ROUTES: list[tuple[str, Callable[..., None]]] = [
    (rf"/api/models/{NAME}", info),
    (rf"/api/models/{NAME}/revision/(?P<revision>[^/]+)", info),
    (rf"/api/models/{NAME}/tree/(?P<revision>[^/]+)", tree),
    (rf"/api/models/{NAME}/paths-info/(?P<revision>[^/]+)", paths),
    (rf"/{NAME}/resolve/(?P<revision>[^/]+)/(?P<file>.+)", resolve),
]
