"""Where replies come from: our engine, or any server that speaks OpenAI's API, on the same client's clock.

An endpoint takes a text and gives a Reply: when its tokens came. Knows nothing of repetitions and records.
"""

import asyncio
import concurrent.futures
import contextlib
import hashlib
import http.client
import itertools
import json
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Protocol
from urllib.parse import urlsplit

from edge.config import EngineSettings, Sampling
from edge.engine.client import EngineClient
from edge.engine.protocol import Done, Generate, Text
from edge.errors import EngineError

WORDS = tuple("the of and to in is it for was on are as with his they at be this from have or by one had".split())  # noqa: SIM905
LOOSE = Sampling(temperature=0.6, top_k=40, top_p=0.95)  # what a chat uses
TIMEOUT_S = 600
N_CONNECTIONS_MAX = 128
N_CALIBRATION_WORDS = 64


@dataclass
class Reply:
    """When the text of one reply came. Times: nanoseconds of perf_counter."""

    asked_ns: int
    text_ns: list[int] = field(default_factory=list)  # a token that ends inside a character shows no text
    end_ns: int = 0
    n_prompt_tokens: int = 0
    n_tokens: int = 0  # generated
    text: str = ""

    @property
    def first_ns(self) -> int:
        """From asking to the first text."""
        return (self.text_ns[0] if self.text_ns else self.end_ns) - self.asked_ns

    @property
    def gaps_ns(self) -> list[int]:
        return [b - a for a, b in itertools.pairwise(self.text_ns)]

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()


class Endpoint(Protocol):
    """What answers."""

    async def start(self) -> None: ...

    async def reply(self, text: str, n_tokens: int, *, greedy: bool = False) -> Reply: ...

    async def close(self) -> None: ...


def words(n: int, seed: int) -> str:
    """A text of n short words that no other seed begins with."""
    draw = random.Random(seed)
    return " ".join(draw.choice(WORDS) for _ in range(max(1, n)))


async def words_per_token(endpoint: Endpoint) -> float:
    """How many of our words make a token at this endpoint, from one short reply."""
    reply = await endpoint.reply(words(N_CALIBRATION_WORDS, -1), 1)
    return N_CALIBRATION_WORDS / reply.n_prompt_tokens if reply.n_prompt_tokens else 1.0


class EngineEndpoint:
    """Our engine, through the client that the chat uses."""

    def __init__(self, settings: EngineSettings) -> None:
        self.features = ""
        self._client = EngineClient(settings)
        self._ids = itertools.count()
        self.load_s = 0.0
        self.n_threads = 0

    @property
    def pid(self) -> int | None:
        return self._client.pid

    async def start(self) -> None:
        ready = await self._client.start()
        self.features, self.load_s, self.n_threads = ready.system, ready.load_time_s, ready.n_threads

    async def reply(self, text: str, n_tokens: int, *, greedy: bool = False) -> Reply:
        sampling = Sampling(temperature=0) if greedy else LOOSE
        name = f"bench-{next(self._ids)}"
        request = Generate(name, ((text, False),), sampling, max_tokens=n_tokens, thinks=False, ignore_end=True)
        reply = Reply(time.perf_counter_ns())
        async for event in self._client.generate(request):
            if isinstance(event, Text):
                reply.text_ns.append(time.perf_counter_ns())
                reply.text += event.text
            elif isinstance(event, Done):
                reply.end_ns = time.perf_counter_ns()
                reply.n_tokens, reply.n_prompt_tokens = event.n_output_tokens, event.n_prompt_tokens
        return reply

    async def close(self) -> None:
        await self._client.close()


class UrlEndpoint:
    """A server that speaks OpenAI's API: llama-server, Ollama, vLLM, an NPU's. Each reply takes a thread.

    Asks /completions, or /chat/completions where there is none; leaves out what a server refuses.
    """

    def __init__(self, url: str, model: str | None = None, key: str | None = None) -> None:
        """url: up to and including /v1. Raises EngineError if it is none."""
        try:
            parts = urlsplit(url)
            is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:  # a port that is no number, half an IPv6 address
            is_address = False
        if not is_address:
            raise EngineError(f"{url} is no address of a server", "give one such as http://127.0.0.1:8080/v1")
        self._parts, self._path = parts, parts.path.rstrip("/")
        self._is_chat = False
        self._extras: dict[str, Any] = {"ignore_eos": True, "stream_options": {"include_usage": True}}
        self._headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        self.model = model or ""
        self._pool = concurrent.futures.ThreadPoolExecutor(N_CONNECTIONS_MAX, "bench")

    async def start(self) -> None:
        """Find the model and the way of asking. Raises EngineError."""
        if not self.model:
            self.model = await asyncio.to_thread(self._first_model)
        await self.reply("one", 2)  # settles what this server understands

    async def reply(self, text: str, n_tokens: int, *, greedy: bool = False) -> Reply:
        temperature = 0.0 if greedy else LOOSE.temperature
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, self._reply, text, n_tokens, temperature)

    async def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _first_model(self) -> str:
        with self._asking("GET", "/models") as response:
            body = response.read()
            if response.status == HTTPStatus.OK:
                with contextlib.suppress(ValueError, LookupError, TypeError):
                    return str(json.loads(body)["data"][0]["id"])
        raise EngineError(f"{self._parts.netloc} names no model", "name one with --model")

    def _reply(self, text: str, n_tokens: int, temperature: float) -> Reply:
        for _ in range(4):  # at most one refusal for each thing that can be left out
            reply = self._try(text, n_tokens, temperature)
            if reply is not None:
                return reply
        raise EngineError(f"{self._parts.netloc} refuses a plain request", "ask it by hand, and look at its log")

    def _try(self, text: str, n_tokens: int, temperature: float) -> Reply | None:
        """A reply, or None if it was refused and something was left out for the next time."""
        body = {"model": self.model, "max_tokens": n_tokens, "temperature": temperature, "stream": True}
        body |= {"messages": [{"role": "user", "content": text}]} if self._is_chat else {"prompt": text}
        reply = Reply(time.perf_counter_ns())
        path = "/chat/completions" if self._is_chat else "/completions"
        with self._asking("POST", path, body | self._extras) as response:
            if response.status == HTTPStatus.OK:
                self._listen(response, reply)
                return reply
            problem = response.read(2000).decode("utf-8", "replace")
        if response.status in (404, 405, 501) and not self._is_chat:
            self._is_chat = True
        elif response.status in (400, 422) and self._extras:
            self._extras.pop(next(iter(self._extras)))
        else:
            said = " ".join(problem.split())[:200]
            hint = "give its key with --key" if response.status in (401, 403) else "look at its log"
            raise EngineError(f"{self._parts.netloc} answered {response.status} ({said})", hint)
        return None

    def _listen(self, response: http.client.HTTPResponse, reply: Reply) -> None:
        usage: dict[str, Any] = {}
        for line in response:
            if not line.startswith(b"data: ") or line.strip() == b"data: [DONE]":
                continue
            now_ns = time.perf_counter_ns()
            try:
                event = json.loads(line[6:])
                if "error" in event:
                    raise EngineError(f"{self._parts.netloc} failed ({event['error']})", "look at its log")
                usage = event.get("usage") or usage
                text = "".join(map(_text_of, event.get("choices") or []))
            except (ValueError, AttributeError, TypeError) as error:
                raise EngineError(f"{self._parts.netloc} sent no OpenAI event", "check the address") from error
            if text:
                reply.text_ns.append(now_ns)
                reply.text += text
        reply.end_ns = time.perf_counter_ns()
        reply.n_tokens = int(usage.get("completion_tokens") or len(reply.text_ns))
        reply.n_prompt_tokens = int(usage.get("prompt_tokens") or 0)

    @contextlib.contextmanager
    def _asking(self, method: str, path: str, body: Any = None) -> Iterator[http.client.HTTPResponse]:
        kind = http.client.HTTPSConnection if self._parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(self._parts.hostname or "", self._parts.port, timeout=TIMEOUT_S)
        try:
            data = None if body is None else json.dumps(body).encode()
            connection.request(method, self._path + path, data, self._headers)
            yield connection.getresponse()
        except (OSError, http.client.HTTPException, UnicodeError) as error:  # Unicode: no host has such a name
            problem = f"{self._parts.netloc} cannot be reached ({error or type(error).__name__})"
            raise EngineError(problem, "start the server, or check the address") from error
        finally:
            connection.close()


def _text_of(choice: dict[str, Any]) -> str:
    delta = choice.get("delta") or {}
    parts = (choice.get("text"), delta.get("reasoning_content"), delta.get("reasoning"), delta.get("content"))
    return next((str(part) for part in parts if part), "")
