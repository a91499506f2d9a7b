"""The command line: `edge COMMAND`. Options in, results out; the one place where errors become exit codes.

Exit 0 done, 1 failed, 2 misused, 130 interrupted. Heavy imports happen inside commands, so `edge --help` is instant.
"""

import importlib
import io
import logging
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge import __version__
from edge.board.options import CTX, FORCE, GPU_LAYERS, THREADS
from edge.config import EngineSettings, Sampling
from edge.errors import EdgeError

if TYPE_CHECKING:
    from edge.chat import Conversation
    from edge.model.gguf import ModelInfo

ELSEWHERE = {  # commands that live in their own module
    "convert": "convert.cli",
    "bench": "benchmarks.cli",
    **dict.fromkeys(("plan", "doctor", "tune"), "edge.board.cli"),
    **dict.fromkeys(("quality", "imatrix"), "convert.prove"),
    "service": "edge.service",
    "serve": "edge.serve.cli",
    "history": "edge.history_cli",
    **dict.fromkeys(("pull", "ls", "rm", "show", "push", "bundle", "install-bundle"), "edge.model.cli"),
}


class EdgeGroup(click.Group):
    """Finds commands of other packages when they are called, and turns every known error into one sentence."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), *ELSEWHERE])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if module := ELSEWHERE.get(cmd_name):
            command: click.Command = getattr(importlib.import_module(module), cmd_name.replace("-", "_"))
            return command
        return super().get_command(ctx, cmd_name)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except EdgeError as error:
            raise click.ClickException(str(error)) from error
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            ctx.exit(130)
        except BrokenPipeError:  # `edge … | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(0)


@click.group(cls=EdgeGroup, context_settings={"auto_envvar_prefix": "EDGE", "help_option_names": ["-h", "--help"]})
@click.option("-v", "--verbose", is_flag=True, help="Tell on stderr what happens inside.")
@click.version_option(__version__, prog_name="edge")
def cli(verbose: bool) -> None:
    """Run GGUF language models on small machines: convert, chat, measure.

    \b
    edge run "What is 347 + 85?"          ask the bundled demo model
    edge convert ./DeepSeek-R1-Distill-Qwen-1.5B -t Q4_K_M
    edge chat DeepSeek-R1-Distill-Qwen-1.5B-Q4_K_M.gguf
    edge bench *.gguf
    """
    # what goes wrong reaches the user as an error; the log is for whoever looks for its reason
    logging.basicConfig(level=logging.INFO if verbose else logging.CRITICAL, format="%(name)s: %(message)s")


def reply_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options of every command that makes replies."""
    defaults = Sampling()
    options = [
        click.option("--system", metavar="TEXT", help="System prompt."),
        click.option(
            "--max-tokens", type=click.IntRange(1), metavar="N", help="At most N tokens, thought and answer together."
        ),
        click.option(
            "--temp", type=click.FloatRange(0, 5), metavar="T", help=f"0 is greedy.  [{defaults.temperature}]"
        ),
        click.option("--top-k", type=click.IntRange(0, 1000), metavar="K", help=f"0 turns it off.  [{defaults.top_k}]"),
        click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), metavar="P", help=f"[{defaults.top_p}]"),
        click.option("--min-p", type=click.FloatRange(0, 1, max_open=True), metavar="P", help=f"[{defaults.min_p}]"),
        click.option("--seed", type=click.IntRange(0, 2**32 - 1), metavar="N", help="Same seed, same reply."),
        click.option("--think/--no-think", default=True, help="Show the thought, or only the answer."),
        CTX, THREADS, GPU_LAYERS, FORCE,
    ]  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


@cli.command()
@click.argument("words", nargs=-1, metavar="[MODEL] PROMPT")
@reply_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document: thought, answer, counts, rates.")
def run(words: tuple[str, ...], *, as_json: bool, think: bool, **options: Any) -> None:
    """Ask one question.

    \b
    edge run "What is 347 + 85?"                     the bundled demo model
    edge run model.gguf "Why is the sky blue?"
    git diff | edge run model.gguf "Review this."    a pipe is added to the prompt
    edge run "What is 7 - 12?" --json | jq -r .answer
    """
    model, prompt = split_words(words, read_pipe())
    from edge import terminal
    from edge.engine.client import Engine

    info, conversation = prepare(model, **options)
    with terminal.loading(info.path.name) as progress:
        engine = Engine(engine_settings(info, n_slots=1, **options), on_loading=progress)
        engine.start()
    with engine:
        if as_json:
            click.echo(terminal.reply_json(conversation, engine, prompt))
        else:
            terminal.reply(conversation, engine, prompt, show_thought=think)


@cli.command()
@click.argument("model", required=False)
@reply_options
@click.option("--save/--no-save", default=None, help="Keep the conversation.  [save at a keyboard, not from a pipe]")
def chat(model: str | None, *, think: bool, save: bool | None, **options: Any) -> None:
    """Talk, in several turns. No MODEL means the bundled demo. /help lists what can be typed.

    \b
    edge chat
    edge chat model.gguf --system "You are a math tutor."
    """
    from edge import terminal
    from edge.engine.client import Engine
    from edge.history import History
    from edge.session import Session

    info, conversation = prepare(model, **options)
    with terminal.loading(info.path.name) as progress:
        engine = Engine(engine_settings(info, n_slots=1, **options), on_loading=progress)
        engine.start()
    keeps = sys.stdin.isatty() if save is None else save
    with engine, History(in_memory=not keeps) as history:
        Session(conversation, engine, history, show_thought=think).run()


@cli.command()
@click.argument("model", required=False)
@click.option("--verify", is_flag=True, help="Read all of it and compare it with the manifest beside it.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document with every key and tensor.")
def inspect(model: str | None, *, verify: bool, as_json: bool) -> None:
    """Show what a GGUF file says of itself. Reads its header only.

    \b
    edge inspect model.gguf
    edge inspect model.gguf --verify
    edge inspect model.gguf --json | jq .tensors
    """
    import json

    from edge.model.facts import describe, to_json
    from edge.model.gguf import read_model_info
    from edge.model.names import is_name

    if model and is_name(model):
        from edge.model.pull import read_info

        info = read_info(model)
    else:
        info = read_model_info(model_path(model))
    manifest = None
    if verify:
        from convert.manifest import verify as verified

        manifest = verified(info.path)
    if as_json:
        document = to_json(info) if manifest is None else {**to_json(info), "manifest": manifest}
        click.echo(json.dumps(document, ensure_ascii=False, indent=1))
        return
    facts = describe(info)
    if manifest is not None:
        facts.append(("verified", f"SHA-256 {manifest['file']['sha256']}, as its manifest says"))
    width = max(len(name) for name, _ in facts)
    for name, value in facts:
        click.echo(f"{name:<{width}}  {value}")


def model_path(model: str | None) -> Path:
    """The file a MODEL argument names: a path, or a name that is fetched if it is not here; none means the demo."""
    if model is None:
        from edge.demo import demo_model

        return demo_model()
    from edge.model.names import is_name

    if not is_name(model) or Path(model).exists():
        return Path(model)
    from edge.model.cli import fetching
    from edge.model.pull import resolve

    with fetching() as progress:
        return resolve(model, progress=progress)


def prepare(
    model: str | None, *, system: str | None, max_tokens: int | None, **options: Any
) -> "tuple[ModelInfo, Conversation]":
    """Read the model's header and set up a conversation with its template and sampling."""
    from edge.chat import Conversation, chat_template
    from edge.model.gguf import read_model_info

    info = read_model_info(model_path(model))
    asked = {name: options[name] for name in ("top_k", "top_p", "min_p", "seed")}
    sampling = Sampling().updated(info.sampling).updated({**asked, "temperature": options["temp"]})
    return info, Conversation(chat_template(info), sampling, system, max_tokens)


def engine_settings(
    info: "ModelInfo",
    *,
    ctx: int | None = None,
    threads: int | None = None,
    gpu_layers: int | None = None,
    force: bool = False,
    slots: int | None = None,
    n_slots: int,
    **_: Any,
) -> EngineSettings:
    """What the plan for this board says, and this process moved to the cores it leaves free. Raises NoMemoryError.

    slots: as asked for; n_slots: when nobody asked.
    """
    from edge.board.plan import Wish, make_plan
    from edge.board.topology import bind_front

    plan = make_plan(info, Wish(ctx, slots, threads, gpu_layers, force), default_slots=n_slots)
    for note in plan.notes:
        logging.getLogger(__name__).info("plan: %s", note)
    for warning in plan.warnings:
        click.echo(f"Note: {warning}.", err=True)
    if plan.settings.cpus:  # else the engine stays where this process is, and that must be everywhere
        bind_front(plan.board.topology)
    return plan.settings


def split_words(words: tuple[str, ...], piped: str) -> tuple[str | None, str]:
    """MODEL and PROMPT out of the words typed and the text piped in. A lone model is that of a piped prompt."""
    from edge.model.names import is_name

    model, prompt = None, ""
    match words:
        case ():
            pass
        case (word,) if piped and (word.endswith(".gguf") or is_name(word)):
            model = word
        case (word,):
            prompt = word
        case (first, second):
            model, prompt = first, second
        case _:
            raise click.UsageError("put the prompt in quotes: edge run MODEL 'PROMPT'")
    prompt = "\n\n".join(part for part in (prompt.strip(), piped.strip()) if part)
    if not prompt:
        raise click.UsageError("no PROMPT; try: edge run 'What is 347 + 85?'")
    if model is None and prompt.endswith(".gguf"):
        raise click.UsageError(f"no PROMPT; try: edge run {prompt} 'Who are you?'")
    return model, prompt


def read_pipe() -> str:
    """The text piped or redirected into this command; a terminal or /dev/null gives none."""
    try:
        mode = os.fstat(0).st_mode
    except OSError:  # stdin is closed
        return ""
    if not (stat.S_ISFIFO(mode) or stat.S_ISREG(mode)):
        return ""
    return sys.stdin.buffer.read().decode("utf-8", "replace").replace("\0", "")


def main() -> None:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without 中文 shows ??
    cli(prog_name="edge")


if __name__ == "__main__":
    main()
