"""`edge serve`: the options of the server, and what a person sees when it starts."""

import contextlib
import logging
import os
import socket
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click
import psutil

from edge.board.options import CTX, FORCE, GPU_LAYERS, THREADS
from edge.cli import engine_settings, model_path
from edge.config import HOST, PORT, EngineSettings, cache_dir
from edge.errors import RefusedMessagesError

if TYPE_CHECKING:
    from fastapi import APIRouter

    from edge.serve.desk import Desk
    from edge.serve.guard import Rules

ANY_ADDRESS = ("0.0.0.0", "::")  # noqa: S104 - compared with, not bound
KEY_VARIABLES = ["EDGE_API_KEY", "EDGE_SERVE_API_KEY"]  # white space between several
FILES = "/api/attachments"  # takes bytes of any kind
MAX_IMPORT_BYTES = 64 << 20
KEY_HELP = "A key clients must send; several may be given. Others see it in the process list: prefer a file."


@click.command()
@click.argument("model", required=False)
@click.option("--host", default=HOST, show_default=True, help="Address to listen on; 0.0.0.0 for the whole network.")
@click.option("--port", type=click.IntRange(0, 65535), default=PORT, show_default=True, help="0 picks a free one.")
@click.option("--api-key", multiple=True, metavar="KEY", envvar=KEY_VARIABLES, help=KEY_HELP)
@click.option("--api-key-file", type=click.Path(path_type=Path), metavar="FILE", help="Keys, one a line; mode 0600.")
@click.option("--insecure", is_flag=True, help="Let the whole network in without a key.")
@click.option("--allow-host", multiple=True, metavar="NAME", help="A further name this server is called by.")
@click.option("--cors-origin", multiple=True, metavar="URL", help="A foreign web page that may call this server.")
@click.option("--alias", metavar="NAME", help="The model's name for clients.  [the file's name]")
@CTX
@click.option(
    "--slots", type=click.IntRange(1, 63), metavar="N",
    help=f"Replies made at once; they share the context.  [{EngineSettings.n_slots}, fewer if memory is short]",
)  # fmt: skip
@click.option("--queue", type=click.IntRange(1, 4096), default=EngineSettings.n_queue, show_default=True, metavar="N",
              help="Requests that may wait before others are told to come back.")  # fmt: skip
@THREADS
@GPU_LAYERS
@FORCE
@click.option("--grace", type=click.FloatRange(0, 3600), default=10.0, show_default=True, metavar="SECONDS",
              help="Time for running replies when the server is told to stop.")  # fmt: skip
@click.option("--max-body", type=click.IntRange(1024, 1 << 26), default=1 << 20, show_default=True, metavar="BYTES")
@click.option("--max-connections", type=click.IntRange(1, 65536), default=256, show_default=True, metavar="N")
@click.option("--prefix-cache/--no-prefix-cache", default=True, help="Keep what prompts have in common on disk.")
@click.option("--json-log", is_flag=True, help="Log one JSON object a request.")
@click.option("--log-prompts", is_flag=True, help="Write prompts into the log too.")
@click.option("--quiet", is_flag=True, help="No log line per request.")
def serve(
    model: str | None,
    *,
    host: str,
    port: int,
    api_key: tuple[str, ...],
    api_key_file: Path | None,
    insecure: bool,
    allow_host: tuple[str, ...],
    cors_origin: tuple[str, ...],
    alias: str | None,
    ctx: int | None,
    slots: int | None,
    queue: int,
    threads: int | None,
    gpu_layers: int | None,
    force: bool,
    grace: float,
    max_body: int,
    max_connections: int,
    prefix_cache: bool,
    json_log: bool,
    log_prompts: bool,
    quiet: bool,
) -> None:
    """Serve a model to OpenAI, Anthropic and Ollama clients. No MODEL means the bundled demo.

    \b
    edge serve model.gguf                        for this machine only, no key
    edge serve model.gguf --host 0.0.0.0         for the network: makes a key and shows it once
    edge serve model.gguf --api-key-file keys    with keys of your own
    curl http://127.0.0.1:8080/v1/chat/completions -H 'Content-Type: application/json' \\
         -d '{"messages": [{"role": "user", "content": "What is 347 + 85?"}]}'
    """
    from edge.chat import chat_template
    from edge.engine.client import EngineClient
    from edge.model.gguf import read_model_info
    from edge.serve import page
    from edge.serve.app import make_app
    from edge.serve.desk import Desk
    from edge.serve.server import Serving, listen, run
    from edge.serve.wire import Limits

    for name in KEY_VARIABLES:  # the engine and the template's process inherit what is here
        os.environ.pop(name, None)
    info = read_model_info(model_path(model))
    template = chat_template(info) if info.chat_template is not None else None
    if template is not None:
        # a template that is broken or hostile is found now, not by the first client; one that is picky about roles runs
        with contextlib.suppress(RefusedMessagesError):
            template.render([{"role": "user", "content": "Hi"}])
    rules, made_key = _rules(host, api_key, api_key_file, insecure=insecure, names=allow_host, origins=cors_origin,
                             max_body=max_body)  # fmt: skip
    listener = listen(host, port)
    planned = engine_settings(info, ctx=ctx, threads=threads, gpu_layers=gpu_layers, force=force, slots=slots,
                              n_slots=EngineSettings.n_slots)  # fmt: skip
    settings = replace(planned, n_queue=queue, prefix_dir=str(cache_dir() / "prefixes") if prefix_cache else None)
    _log_to_stderr(json_log=json_log, quiet=quiet)
    desk = Desk(EngineClient(settings), info, template, alias or info.path.stem)
    desk.logs_prompts = log_prompts
    rules = replace(rules, public=rules.public | page.paths())
    app = make_app(desk, rules, json_log=json_log, routers=(page.router(), _conversations(desk)))
    _greet(host, listener.getsockname()[1], desk.model, made_key, has_key=bool(rules.keys))
    try:
        run(Serving(app, desk, Limits(n_connections=max_connections), grace), listener)
    finally:
        if template is not None:
            template.close()


def _conversations(desk: "Desk") -> "APIRouter":
    """The routes of the user's history; a history that cannot be written is told, and works in memory."""
    from edge.history import History
    from edge.serve import conversations
    from edge.serve.body import StrictRoute
    from edge.serve.problems import code_of
    from edge.serve.replies import Replies

    history = History()
    if history.problem is not None:
        click.echo(history.problem, err=True)
    replies = Replies(
        history, desk.engine, desk.template, sampling=desk.defaults, on_done=desk.metrics.done, code_of=code_of
    )
    return conversations.router(history, replies, model=desk.model, route_class=StrictRoute)


def _rules(
    host: str,
    api_key: tuple[str, ...],
    api_key_file: Path | None,
    *,
    insecure: bool,
    names: tuple[str, ...],
    origins: tuple[str, ...],
    max_body: int,
) -> "tuple[Rules, str | None]":
    """(who may come in, the key if one was made now)."""
    from edge.documents import MAX_FILE_BYTES
    from edge.serve.guard import Rules, is_loopback
    from edge.serve.keys import check_keys, key_file, own_key, read_keys

    check_keys(api_key, "--api-key")
    keys = list(api_key)
    if api_key_file is not None:
        keys += read_keys(api_key_file)
        check_keys(keys, str(api_key_file))
    made_key = None
    if not keys and not insecure and not is_loopback(host):
        key, is_new = own_key()
        check_keys([key], str(key_file()))
        keys, made_key = [key], key if is_new else None
    rules = Rules(
        own_hosts(host, names), tuple(keys), frozenset(origins), max_body_bytes=max_body,
        raw=frozenset({FILES}), max_bytes_of={FILES: MAX_FILE_BYTES, "/api/conversations/import": MAX_IMPORT_BYTES},
    )  # fmt: skip
    return rules, made_key


def own_hosts(host: str, names: tuple[str, ...] = ()) -> frozenset[str]:
    """Every name and address this machine is called by. Those of the network only where the network can come in."""
    from edge.serve.guard import is_loopback

    found = {"localhost", "127.0.0.1", "[::1]", *names}
    if not is_loopback(host):
        machine = socket.gethostname()
        found |= {machine, f"{machine.partition('.')[0]}.local"}
        for addresses in psutil.net_if_addrs().values():
            for entry in addresses:
                if entry.family == socket.AF_INET:
                    found.add(entry.address)
                elif entry.family == socket.AF_INET6:
                    found.add(f"[{entry.address.partition('%')[0]}]")
    if host not in ANY_ADDRESS:
        found.add(f"[{host}]" if ":" in host else host)
    return frozenset(name.lower().rstrip(".") for name in found)


def _log_to_stderr(*, json_log: bool, quiet: bool) -> None:
    """Our own lines, without the names of modules; uvicorn tells nothing that these do not."""
    log = logging.getLogger("edge.requests")
    log.handlers = [logging.StreamHandler(sys.stderr)]
    log.handlers[0].setFormatter(
        logging.Formatter("%(message)s" if json_log else "%(asctime)s %(message)s", "%H:%M:%S")
    )
    log.propagate = False
    log.setLevel(logging.CRITICAL if quiet else logging.INFO)


def _greet(host: str, port: int, model: str, made_key: str | None, *, has_key: bool) -> None:
    """Where to go, and the key if nobody has seen it yet."""
    from edge.serve.keys import key_file

    shown = _address() if host in ANY_ADDRESS else host
    shown = f"[{shown}]" if ":" in shown else shown
    click.echo(f"serving {model} at http://{shown}:{port}", err=True)
    if made_key is not None:
        click.echo(f"key: {made_key}\n(shown this once, kept in {key_file()})", err=True)
    elif has_key:
        click.echo("clients send their key as Authorization: Bearer KEY", err=True)


def _address() -> str:
    """The address the network knows this machine by. Sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
            return str(probe.getsockname()[0])
        except OSError:
            return HOST
