"""The hub: what a repository holds, and the bytes of its files from any place. Knows nothing of caches, disks or GGUF.

huggingface-hub speaks to it: HF_ENDPOINT, HF_TOKEN (or `hf auth login`), HF_HUB_OFFLINE and proxies work as with every
tool that uses it. Reading is ours, because its downloads start anew after a break and check no hash. The token goes to
the endpoint and nowhere else, whatever a redirect or an answer says; Xet's own transport, which would not keep to that
and which cannot be read in ranges, stays off.
"""

import contextlib
import json
import logging
import math
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx2
from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils._headers import build_hf_headers
from huggingface_hub.utils._http import default_client_factory, get_session, set_client_factory
from huggingface_hub.utils._validators import validate_repo_id

from edge.errors import HubError
from edge.model.cursor import ReadAt
from edge.model.names import is_plain

logger = logging.getLogger(__name__)

N_TRIES = 6  # in a row without a single new byte
N_TRIES_LASTING = 3  # of what is most likely there to stay
N_ANSWER_BYTES_MAX = 32 << 20  # a list of 20,000 files has 5 MB
WAIT_MAX_S = 300.0  # a hub that asks for more is not waited for
N_FILES_MAX = 20_000
_SHA256, _GIT_SHA1 = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{40}")

constants.HF_HUB_DISABLE_XET = True
constants.HF_HUB_DISABLE_TELEMETRY = True


@dataclass(frozen=True)
class HubFile:
    """One file of a repository at one revision. It has a SHA-256, or, if small, git's SHA-1."""

    repo_id: str
    revision: str
    name: str
    n_bytes: int
    sha256: str | None
    git_sha1: str

    @property
    def etag(self) -> str:
        """What the cache calls its content."""
        return self.sha256 or self.git_sha1

    def __str__(self) -> str:
        return f"{self.repo_id}/{self.name}"


@dataclass(frozen=True)
class Repository:
    """What a repository holds at one revision. The texts are as its owner wrote them."""

    repo_id: str
    revision: str
    ref: str  # the branch or tag that was asked for
    files: tuple[HubFile, ...]
    licence: str | None
    base_model: str | None

    def file(self, name: str) -> HubFile | None:
        return next((file for file in self.files if file.name == name), None)


class _Setback(Exception):
    """An attempt that failed but may succeed if made again."""

    def __init__(self, reason: str, wait_s: float | None = None, *, n_tries: int = N_TRIES) -> None:
        super().__init__(reason)
        self.reason = reason
        self.wait_s = wait_s
        self.n_tries = n_tries


@dataclass(frozen=True)
class Hub:
    """A way to one hub. The last one made is the one whose endpoint gets the token."""

    endpoint: str
    token: str | None = field(default=None, repr=False)
    cache: Path = Path(constants.HF_HUB_CACHE)
    is_offline: bool = False
    timeout_s: float = float(constants.HF_HUB_DOWNLOAD_TIMEOUT)
    pause: Callable[[float], None] = field(default=time.sleep, repr=False)
    notice: Callable[[str], None] = field(default=logger.info, repr=False)  # told why nothing happens for a while

    def __post_init__(self) -> None:
        if urlsplit(self.endpoint).scheme not in ("http", "https"):
            raise HubError(self.endpoint, "is no address of a hub", "set HF_ENDPOINT to https://…, or unset it")
        set_client_factory(self._client)

    @classmethod
    def from_environment(cls, notice: Callable[[str], None] = logger.info) -> "Hub":
        token = None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()
        return cls(constants.ENDPOINT, token, is_offline=constants.is_offline_mode(), notice=notice)

    @property
    def api(self) -> HfApi:
        """The client library's own API, on this endpoint. Its errors become ours inside of `explained`."""
        return HfApi(endpoint=self.endpoint, token=self.token or False, library_name="edge")

    def repository(self, repo_id: str, revision: str | None = None) -> Repository:
        """What the repository holds. Raises HubError with what to do."""
        with explained(self, repo_id):
            validate_repo_id(repo_id)
            info = self._insist(repo_id, lambda: self._model_info(repo_id, revision))
        return _repository(repo_id, revision or "main", info)

    def stream(self, file: HubFile, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """Yield the bytes from start to stop, no more and no fewer, over as many connections as it takes.

        Raises HubError when N_TRIES attempts in a row bring nothing.
        """
        stop = file.n_bytes if stop is None else stop
        assert 0 <= start <= stop <= file.n_bytes
        n_tries = 0
        while start < stop:
            try:
                for chunk in self._attempt(file, start, stop):
                    yield chunk
                    start += len(chunk)
                    n_tries = 0
            except _Setback as setback:
                n_tries += 1
                self._wait(str(file), setback, n_tries)

    def read_at(self, file: HubFile) -> ReadAt:
        """The reader that header.read_header asks for: a range request each."""
        return lambda offset, n: b"".join(self.stream(file, offset, min(offset + n, file.n_bytes)))

    def url(self, file: HubFile) -> str:
        return f"{self.endpoint}/{file.repo_id}/resolve/{file.revision}/{quote(file.name)}"

    # ---- one request

    def _model_info(self, repo_id: str, revision: str | None) -> dict[str, Any]:
        """The answer as plain JSON: the library's own class takes what a hub says on trust."""
        path = f"/revision/{quote(revision, safe='')}" if revision else ""
        url = f"{self.endpoint}/api/models/{repo_id}{path}"
        request = get_session().stream(
            "GET", url, params={"blobs": "true"}, headers=self._headers(), timeout=self._timeout
        )
        with _network_setbacks(), request as response:
            self._check(response)
            text = b""
            for chunk in response.iter_bytes():
                text += chunk
                if len(text) > N_ANSWER_BYTES_MAX:
                    raise HubError(repo_id, "has too long a list of files", "choose another repository")
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise HubError(self.endpoint, "does not answer like a hub", "check HF_ENDPOINT and the network's proxy")
        return found

    def _attempt(self, file: HubFile, start: int, stop: int) -> Iterator[bytes]:
        """One request for the bytes from start to stop; raises _Setback if it breaks off, whatever the reason."""
        headers = self._headers() | {"Accept-Encoding": "identity", "Range": f"bytes={start}-{stop - 1}"}
        with explained(self, str(file)), contextlib.ExitStack() as stack:
            stack.enter_context(_network_setbacks())
            request = get_session().stream("GET", self.url(file), headers=headers, timeout=self._timeout)
            response = stack.enter_context(request)
            self._check(response)
            place = _first_byte(response, file, start)
            for chunk in response.iter_raw():
                useful = chunk[max(0, start - place) : max(0, stop - place)]
                place += len(chunk)
                if useful:
                    start += len(useful)
                    yield useful
                if place >= stop:
                    return
        raise _Setback(f"the connection ended after {place:,} of {stop:,} bytes")

    def _check(self, response: httpx2.Response) -> None:
        """Raise for what is no success: _Setback if waiting may help, else HfHubHTTPError."""
        status = response.status_code
        if status in (408, 425, 429) or status >= 500:
            raise _Setback(_said(status), _retry_after_s(response))
        if status == 416:
            raise _Setback("it has fewer bytes there than the hub says (416)", n_tries=N_TRIES_LASTING)
        if status not in (200, 206):
            raise HfHubHTTPError(f"status {status}", response=response)

    def _insist(self, subject: str, request: Callable[[], Any]) -> Any:
        n_tries = 0
        while True:
            try:
                return request()
            except _Setback as setback:
                n_tries += 1
                self._wait(subject, setback, n_tries)

    def _wait(self, subject: str, setback: _Setback, n_tries: int) -> None:
        """Wait as long as the hub asks, or twice as long as the last time. Raises HubError when it is enough."""
        wait_s = setback.wait_s if setback.wait_s is not None else min(0.5 * 2**n_tries, 30.0)
        if wait_s > WAIT_MAX_S:
            problem = f"the hub asks to wait for {wait_s / 60:,.0f} minutes"
            raise HubError(subject, problem, "try again then; what is here already is kept")
        if n_tries >= setback.n_tries:
            remedy = "check the network and try again; what is here already is kept"
            raise HubError(subject, f"{setback.reason}, {n_tries} times in a row", remedy)
        self.notice(f"{subject}: {setback.reason}; trying again in {wait_s:.0f} s")
        self.pause(wait_s)

    def _headers(self) -> dict[str, str]:
        return build_hf_headers(token=self.token or False, library_name="edge")

    @property
    def _timeout(self) -> httpx2.Timeout:
        return httpx2.Timeout(self.timeout_s)

    def _client(self) -> httpx2.Client:
        """The library's client, but nothing that it sends elsewhere carries the token."""
        client = default_client_factory()
        home = origin(self.endpoint)

        def keep_token_home(request: httpx2.Request) -> None:
            if origin(str(request.url)) != home:
                for name in ("authorization", "cookie"):
                    request.headers.pop(name, None)

        hooks = client.event_hooks
        client.event_hooks = {**hooks, "request": [*hooks["request"], keep_token_home]}
        return client


def origin(url: str) -> tuple[str, str, int | None]:
    """Scheme, host and port: where a token may go is decided by all three."""
    found = urlsplit(url)
    return found.scheme, (found.hostname or "").lower(), found.port or {"http": 80, "https": 443}.get(found.scheme)


@contextlib.contextmanager
def explained(hub: Hub, subject: str) -> Iterator[None]:
    """Turn what the library raises into HubError with the next step."""
    try:
        yield
    except OfflineModeIsEnabled:
        raise HubError(
            subject, "is not on this machine and HF_HUB_OFFLINE is set", "unset it, or fetch the model elsewhere"
        ) from None
    except GatedRepoError:
        raise _gated(hub, subject) from None
    except HfHubHTTPError as error:
        raise _refused(hub, subject, error.response) from None
    except HFValidationError:
        raise HubError(subject, "is no name of a repository", "name it as OWNER/REPO") from None
    except httpx2.HTTPError as error:
        raise HubError(subject, f"the hub cannot be reached ({_reason(error)})", "check the network") from None


def _refused(hub: Hub, subject: str, response: httpx2.Response) -> HubError:
    status, code = response.status_code, response.headers.get("X-Error-Code", "")
    if code == "GatedRepo":
        return _gated(hub, subject)
    if code == "RevisionNotFound":
        return HubError(subject, "has no such revision", "leave the revision out, or check it on the hub")
    if code == "EntryNotFound":
        return HubError(subject, "is not there", "look at what the repository holds on the hub")
    if status == 401 and hub.token:
        return HubError(subject, "is not given for this token", f"renew HF_TOKEN at {hub.endpoint}/settings/tokens")
    if status in (401, 404) and not hub.token:
        return HubError(subject, "does not exist or is private", "check the name; for a private one set HF_TOKEN")
    if status == 404:
        return HubError(subject, "does not exist on the hub", "check the name")
    if status == 403:
        return HubError(subject, "may not be done with this token", "give HF_TOKEN the right to it")
    message = "".join(c for c in response.headers.get("X-Error-Message", "")[:200] if c.isprintable())
    return HubError(subject, f"the hub refuses it ({status}{': ' if message else ''}{message})", "try again later")


def _gated(hub: Hub, subject: str) -> HubError:
    page = f"{hub.endpoint}/{'/'.join(subject.split('/')[:2])}"
    remedy = f"accept them at {page}" + ("" if hub.token else ", then set HF_TOKEN")
    return HubError(subject, "is given only to those who accept its terms", remedy)


@contextlib.contextmanager
def _network_setbacks() -> Iterator[None]:
    """What a network does to a request is no end yet."""
    try:
        yield
    except (httpx2.TimeoutException, httpx2.NetworkError, httpx2.RemoteProtocolError) as error:
        raise _Setback(f"the connection failed ({_reason(error)})") from error


def _reason(error: httpx2.HTTPError) -> str:
    return str(error) or {"ReadTimeout": "no answer in time", "ConnectTimeout": "no connection in time"}.get(
        type(error).__name__, type(error).__name__
    )


def _said(status: int) -> str:
    return {429: "the hub is asked too often (429)"}.get(status, f"the hub has a fault ({status})")


def _retry_after_s(response: httpx2.Response) -> float | None:
    """Retry-After, as seconds or as a date; None if it is not there or nonsense."""
    text = response.headers.get("Retry-After", "").strip()
    try:
        wait_s = float(text)
    except ValueError:
        try:
            then = parsedate_to_datetime(text)
        except (TypeError, ValueError):
            return None
        wait_s = (then if then.tzinfo else then.replace(tzinfo=timezone.utc)).timestamp() - datetime.now().timestamp()
    return max(0.0, wait_s) if math.isfinite(wait_s) else None


def _first_byte(response: httpx2.Response, file: HubFile, start: int) -> int:
    """Where the body of an answer starts: where it was asked for, or at 0 if ranges are ignored."""
    if response.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise _Setback("it comes compressed, which was not asked for", n_tries=N_TRIES_LASTING)
    if response.status_code == 200:
        length = response.headers.get("Content-Length", "")
        if length.isdigit() and int(length) != file.n_bytes:
            raise _other_length(int(length), file)
        return 0
    found = re.fullmatch(r"bytes (\d{1,20})-(\d{1,20})/(\d{1,20}|\*)", response.headers.get("Content-Range", ""))
    if found is None or int(found[1]) != start:
        raise _Setback("another part of it came than was asked for")
    if found[3] != "*" and int(found[3]) != file.n_bytes:
        raise _other_length(int(found[3]), file)
    return start


def _other_length(n_bytes: int, file: HubFile) -> _Setback:
    return _Setback(f"it has {n_bytes:,} bytes there, the hub's list says {file.n_bytes:,}", n_tries=N_TRIES_LASTING)


# ---- what a repository says of itself


def _repository(repo_id: str, ref: str, info: dict[str, Any]) -> Repository:
    revision, siblings = info.get("sha"), info.get("siblings")
    if not isinstance(revision, str) or not _GIT_SHA1.fullmatch(revision) or not isinstance(siblings, list):
        raise HubError(repo_id, "is not described as a hub describes a model", "check HF_ENDPOINT")
    if len(siblings) > N_FILES_MAX:
        raise HubError(repo_id, f"lists {len(siblings):,} files", "choose another repository")
    card = info.get("cardData")
    card = card if isinstance(card, dict) else {}
    files = tuple(_file(repo_id, revision, sibling) for sibling in siblings)
    licence = next((text for key in ("license_name", "license") if (text := _text(card.get(key)))), None)
    return Repository(repo_id, revision, ref, files, licence, _text(card.get("base_model")))


def _file(repo_id: str, revision: str, sibling: Any) -> HubFile:
    match sibling:
        case {"rfilename": str(name), "size": int(n_bytes), "blobId": str(git_sha1), **others} if n_bytes >= 0:
            lfs = others.get("lfs")
            sha256 = lfs.get("sha256") if isinstance(lfs, dict) else None
        case _:
            text = json.dumps(sibling, default=str)[:80]
            raise HubError(repo_id, f"lists a file without name, size or hash ({text})", "check HF_ENDPOINT")
    if not is_plain(name):
        raise HubError(repo_id, f"lists a file under the name {name[:80]!r}", "use no model of this repository")
    if not _GIT_SHA1.fullmatch(git_sha1) or not (sha256 is None or _SHA256.fullmatch(str(sha256))):
        raise HubError(repo_id, f"lists {name} without a hash that is one", "use no model of this repository")
    return HubFile(repo_id, revision, name, n_bytes, sha256, git_sha1)


def _text(value: object) -> str | None:
    """A short printable text, or the first of a list of such."""
    if isinstance(value, list) and value:
        value = value[0]
    if isinstance(value, str) and value and len(value) <= 200 and value.isprintable():
        return value
    return None
