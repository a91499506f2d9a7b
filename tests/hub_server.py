"""A hub on this machine, as huggingface-hub's client uses one: model info, tree, resolve, ranges, redirects to a "CDN"
with another origin, tokens, gates, uploads by LFS and commits; and every fault a network or a hub can have.

    with HubServer() as server:
        server.add("owner/repo", {"m-Q4_K_M.gguf": data}, card={"license": "mit"})
        server.faults += [Fault(status=503), Fault(cut_after=1000)]      # of the next answers with a file's bytes
"""

import base64
import hashlib
import json
import re
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

LFS = re.compile(r".*\.(gguf|safetensors)")


@dataclass
class Fault:
    """What goes wrong with one answer. Several may be given at once."""

    status: int = 0
    retry_after: str | None = None
    error_code: str | None = None
    cut_after: int | None = None  # bytes of the body, then the connection is gone
    total: int | None = None  # the whole file's length, as told
    flip: bool = False  # one wrong byte
    ignore_range: bool = False
    wrong_range: bool = False  # another part than was asked for
    gzip: bool = False
    more: int = 0  # bytes behind the end
    hang_s: float = 0.0


@dataclass
class Repo:
    files: dict[str, bytes]
    card: dict[str, Any] = field(default_factory=dict)
    gated: bool = False
    private: bool = False
    info: dict[str, Any] = field(default_factory=dict)  # what model info says instead

    @property
    def sha(self) -> str:
        digest = hashlib.sha1()
        for name, data in sorted(self.files.items()):
            digest.update(name.encode() + hashlib.sha1(data).digest())
        return digest.hexdigest()


@dataclass(frozen=True)
class Seen:
    """One request."""

    origin: str  # "hub" or "cdn"
    method: str
    path: str
    token: str | None
    range: str | None


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def git_sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class HubServer:
    """Two listeners on 127.0.0.1: the hub and its CDN."""

    def __init__(self, *, token: str = "hf_secret", bytes_per_s: float = 0.0) -> None:
        self.repos: dict[str, Repo] = {}
        self.token = token
        self.bytes_per_s = bytes_per_s
        self.faults: deque[Fault] = deque()  # of answers with bytes of a file, from either origin
        self.api_faults: deque[Fault] = deque()
        self.location: str | None = None  # where resolve redirects to instead of the CDN
        self.seen: list[Seen] = []
        self.n_bytes_sent = 0
        self.uploads: dict[str, bytes] = {}
        self.commits: list[dict[str, Any]] = []
        self._servers = {origin: self._listen(origin) for origin in ("hub", "cdn")}

    def _listen(self, origin: str) -> ThreadingHTTPServer:
        server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self, "origin": origin}))
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return server

    def url(self, origin: str = "hub") -> str:
        return f"http://127.0.0.1:{self._servers[origin].server_address[1]}"

    def add(self, repo_id: str, files: dict[str, bytes], **options: Any) -> Repo:
        self.repos[repo_id] = Repo(dict(files), **options)
        return self.repos[repo_id]

    def blob(self, digest: str) -> bytes | None:
        found = (data for repo in self.repos.values() for data in repo.files.values() if sha256(data) == digest)
        return next(found, None)

    def close(self) -> None:
        for server in self._servers.values():
            server.shutdown()
            server.server_close()

    def __enter__(self) -> "HubServer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """A client that went away is what these tests are about."""


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    origin: str
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._handle()

    do_HEAD = do_POST = do_PUT = do_GET

    def _handle(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length) if length else self._chunks()
        authorization = self.headers.get("Authorization")
        self.given = authorization.removeprefix("Bearer ") if authorization else None
        self.hub.seen.append(Seen(self.origin, self.command, self.path, self.given, self.headers.get("Range")))
        url = urlsplit(self.path)
        path, query = unquote(url.path), parse_qs(url.query)
        try:
            self._cdn(path) if self.origin == "cdn" else self._hub(path, query)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _chunks(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return b""
        data = b""
        while n := int(self.rfile.readline().strip() or b"0", 16):
            data += self.rfile.read(n)
            self.rfile.readline()
        self.rfile.readline()
        return data

    # ---- the hub

    def _hub(self, path: str, query: dict[str, list[str]]) -> None:
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+?)(?:/revision/(.+))?", path):
            if fault := self._next(self.hub.api_faults):
                return self._fail(fault)
            return self._info(found[1], found[2])
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)/?(.*)", path):
            return self._tree(found[1])
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._resolve(found[1], found[2], found[3])
        if self.command == "POST":
            return self._post(path)
        return self._error(404)

    def _repo(self, repo_id: str, *, content: bool = False) -> Repo | None:
        repo = self.hub.repos.get(repo_id)
        if self.given is not None and self.given != self.hub.token:
            self._error(401, "Invalid credentials in Authorization header")
        elif repo is None or (repo.private and self.given is None):
            self._error(404 if self.given else 401, "Repository not found", "RepoNotFound")
        elif repo.gated and content and self.given is None:
            self._error(401, "Access to model is restricted", "GatedRepo")
        else:
            return repo
        return None

    def _info(self, repo_id: str, revision: str | None) -> None:
        repo = self._repo(repo_id)
        if repo is None:
            return None
        if revision not in (None, "main", repo.sha):
            return self._error(404, "Invalid rev id", "RevisionNotFound")
        siblings = []
        for name, data in repo.files.items():
            sibling: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": git_sha1(data)}
            if LFS.fullmatch(name):
                sibling["lfs"] = {"sha256": sha256(data), "size": len(data), "pointerSize": 135}
            siblings.append(sibling)
        answer = {
            "_id": "1", "id": repo_id, "modelId": repo_id, "sha": repo.sha, "private": repo.private,
            "gated": "manual" if repo.gated else False, "tags": [], "downloads": 0, "likes": 0,
            "cardData": repo.card, "siblings": siblings,
        }  # fmt: skip
        return self._json({**answer, **repo.info})

    def _tree(self, repo_id: str) -> None:
        repo = self._repo(repo_id)
        if repo is None:
            return
        entries = []
        for name, data in repo.files.items():
            entry: dict[str, Any] = {"type": "file", "path": name, "size": len(data), "oid": git_sha1(data)}
            if LFS.fullmatch(name):
                entry["lfs"] = {"oid": sha256(data), "size": len(data), "pointerSize": 135}
            entries.append(entry)
        self._json(entries)

    def _resolve(self, repo_id: str, revision: str, name: str) -> None:
        repo = self._repo(repo_id, content=True)
        if repo is None:
            return None
        if revision not in ("main", repo.sha):
            return self._error(404, "Invalid rev id", "RevisionNotFound")
        if name not in repo.files:
            return self._error(404, "Entry not found", "EntryNotFound", commit=repo.sha)
        data = repo.files[name]
        if not LFS.fullmatch(name):
            headers = {"ETag": f'"{git_sha1(data)}"', "X-Repo-Commit": repo.sha}
            return self._content(data, headers)
        headers = {
            "X-Repo-Commit": repo.sha,
            "X-Linked-Etag": f'"{sha256(data)}"',
            "X-Linked-Size": str(len(data)),
            "Location": self.hub.location or f"{self.hub.url('cdn')}/blobs/{sha256(data)}?signature=1",
        }
        return self._send(302, b"", headers)

    def _post(self, path: str) -> None:
        if self.given != self.hub.token:
            return self._error(401, "Invalid credentials in Authorization header")
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if path == "/api/repos/create":
            asked = json.loads(self.body)
            repo_id = f"{asked.get('organization') or 'me'}/{asked['name']}"
            if repo_id in self.hub.repos:
                return self._json({"error": "exists", "url": f"{self.hub.url()}/{repo_id}"}, 409)
            self.hub.add(
                repo_id,
                {".gitattributes": b"*.gguf filter=lfs\n"},
                private=asked.get("visibility") == "private" or bool(asked.get("private")),
            )
            return self._json({"url": f"{self.hub.url()}/{repo_id}", "name": repo_id, "id": repo_id})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/.+", path):
            files = json.loads(self.body)["files"]
            return self._json({"files": [self._upload_mode(found[1], file["path"]) for file in files]})
        if found := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            return self._json({"objects": [self._batch(entry) for entry in json.loads(self.body)["objects"]]})
        if path == "/verify":
            asked = json.loads(self.body)
            ok = len(self.hub.uploads.get(asked["oid"], b"")) == asked["size"]
            return self._json({}, 200 if ok else 422)
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/.+", path):
            return self._commit(found[1])
        return self._error(404)

    def _upload_mode(self, repo_id: str, name: str) -> dict[str, Any]:
        there = self.hub.repos[repo_id].files.get(name)
        mode = "lfs" if LFS.fullmatch(name) else "regular"
        return {"path": name, "uploadMode": mode, "shouldIgnore": False, "oid": git_sha1(there) if there else None}

    def _batch(self, entry: dict[str, Any]) -> dict[str, Any]:
        if self.hub.blob(entry["oid"]) is not None:
            return entry
        upload = {"href": f"{self.hub.url('cdn')}/upload/{entry['oid']}", "header": {}}
        return {**entry, "actions": {"upload": upload, "verify": {"href": f"{self.hub.url()}/verify", "header": {}}}}

    def _commit(self, repo_id: str) -> None:
        lines = [json.loads(line) for line in self.body.splitlines()]
        repo = self.hub.repos[repo_id]
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                repo.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                data = self.hub.uploads.get(value["oid"]) or self.hub.blob(value["oid"])
                if data is None:
                    return self._error(400, f"no object {value['oid']}")
                repo.files[value["path"]] = data
        self.hub.commits.append(lines[0]["value"])
        answer = {"success": True, "commitOid": repo.sha, "commitUrl": f"{self.hub.url()}/{repo_id}/commit/{repo.sha}"}
        return self._json(answer)

    # ---- the CDN

    def _cdn(self, path: str) -> None:
        if self.command == "PUT" and (found := re.fullmatch(r"/upload/([0-9a-f]{64})", path)):
            if sha256(self.body) != found[1]:
                return self._error(400, "wrong hash")
            self.hub.uploads[found[1]] = self.body
            return self._send(200, b"", {"ETag": '"1"'})
        data = self.hub.blob(path.rpartition("/")[2])
        return self._error(404) if data is None else self._content(data, {"ETag": '"x"'})

    # ---- answers

    def _content(self, data: bytes, headers: dict[str, str]) -> None:
        """Bytes of a file: whole, or the range asked for, with whatever goes wrong next."""
        fault = (self._next(self.hub.faults) if self.command == "GET" else None) or Fault()
        if fault.status:
            return self._fail(fault)
        time.sleep(fault.hang_s)
        start, stop, status = 0, len(data), 200
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if asked and not fault.ignore_range:
            start = int(asked[1]) + (1 if fault.wrong_range else 0)
            stop = min(int(asked[2]) + 1, len(data)) if asked[2] else len(data)
            if start >= len(data):
                return self._send(416, b"", {"Content-Range": f"bytes */{len(data)}"})
            status = 206
            headers = {**headers, "Content-Range": f"bytes {start}-{stop - 1}/{fault.total or len(data)}"}
        body = bytearray(data[start:stop]) + b"\0" * fault.more
        if fault.flip:
            body[len(body) // 2] ^= 1
        if fault.gzip:
            headers = {**headers, "Content-Encoding": "gzip"}
        length = fault.total if fault.total and status == 200 else len(body)
        headers = {**headers, "Accept-Ranges": "bytes", "Content-Length": str(length)}
        return self._send(status, bytes(body), headers, fault.cut_after)

    def _next(self, faults: deque[Fault]) -> Fault | None:
        return faults.popleft() if faults else None

    def _fail(self, fault: Fault) -> None:
        headers = {} if fault.retry_after is None else {"Retry-After": fault.retry_after}
        if fault.error_code:
            headers["X-Error-Code"] = fault.error_code
        if fault.status == 416:
            headers["Content-Range"] = "bytes */0"
        self._send(fault.status, b"{}", headers)

    def _error(self, status: int, message: str = "", code: str = "", commit: str = "") -> None:
        headers = {"X-Error-Message": message, "X-Error-Code": code, "X-Repo-Commit": commit}
        self._send(status, json.dumps({"error": message}).encode(), {k: v for k, v in headers.items() if v})

    def _json(self, document: Any, status: int = 200) -> None:
        self._send(status, json.dumps(document).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: dict[str, str], cut_after: int | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if cut_after is not None:
            body, self.close_connection = body[:cut_after], True
        step = 1 << 16 if not self.hub.bytes_per_s else max(1024, int(self.hub.bytes_per_s / 50))
        for place in range(0, len(body), step):
            self.wfile.write(body[place : place + step])
            self.hub.n_bytes_sent += len(body[place : place + step])
            if self.hub.bytes_per_s:
                time.sleep(step / self.hub.bytes_per_s)
        if cut_after is not None or len(body) < int(headers.get("Content-Length", len(body))):
            self.close_connection = True
