"""A small Hugging Face Hub: a server on this machine that gives the files of folders to the Hub's client."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
"""Commit that the branch `main` of every repository is at."""


@contextmanager
def serving(repositories: dict[str, Path], monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[None]:
    """Let the client ask this server, and keep what it downloads in a cache of its own."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(repositories))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    use_cache(monkeypatch, cache)
    ask(monkeypatch, server.server_port)
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


def ask(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    """Let the client ask a port of this machine."""
    endpoint = f"http://127.0.0.1:{port}"
    files = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    for name, value in {
        "HF_HUB_OFFLINE": False,
        "ENDPOINT": endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": files,
    }.items():
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)


def use_cache(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """Let the client keep its files there, and ask nobody, as with HF_HUB_OFFLINE=1."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def _handler(repositories: dict[str, Path]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            parts = self.path.partition("?")[0].strip("/").split("/")
            of_api = parts[:2] == ["api", "models"]
            user, name, kind, *rest = parts[2:] if of_api else parts
            folder = repositories.get(f"{user}/{name}")
            if folder is None:
                return self.answer(404, error="RepoNotFound")
            if rest and rest[0] not in ("main", COMMIT):
                return self.answer(404, error="RevisionNotFound")
            files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
            if kind == "revision":
                siblings = [{"rfilename": name} for name in files]
                return self.answer(200, json.dumps({"id": f"{user}/{name}", "sha": COMMIT, "siblings": siblings}))
            if kind == "tree":
                entries = [
                    {"type": "file", "path": name, "size": path.stat().st_size, "oid": _etag(path)}
                    for name, path in files.items()
                ]
                return self.answer(200, json.dumps(entries))
            path = files.get("/".join(rest[1:]))
            if path is None:
                return self.answer(404, error="EntryNotFound")
            return self.answer(200, path.read_bytes(), etag=_etag(path))

        def answer(self, status: int, body: str | bytes = b"", *, error: str = "", etag: str = "") -> None:
            content = body.encode() if isinstance(body, str) else body
            self.send_response(status)
            headers = {"X-Error-Code": error, "ETag": etag and f'"{etag}"', "X-Repo-Commit": COMMIT}
            for name, value in headers.items():
                if value:
                    self.send_header(name, value)
            self.send_header(
                "Content-Type", "application/json" if isinstance(body, str) else "application/octet-stream"
            )
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def log_message(self, *arguments: Any) -> None:
            """Nothing is printed."""

    return Handler


def _etag(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()
