"""`edge pull|ls|rm|show|push|bundle|install-bundle`: models from the hub, on this machine, and back.

Nothing but click is imported until a command runs: `edge --help` must not wait for it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from edge.model.cache import LocalModel
    from edge.model.download import Progress


@click.command()
@click.argument("name", required=False)
@click.option("--force", is_flag=True, help="Fetch it even if it does not fit into this machine's memory.")
@click.option("--list", "list_aliases", is_flag=True, help="Show the short names of well-known models.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def pull(name: str | None, *, force: bool, list_aliases: bool, as_json: bool) -> None:
    """Fetch a model from the hub into the shared Hugging Face cache.

    \b
    edge pull deepseek-r1:1.5b                     a short name; edge pull --list shows them all
    edge pull unsloth/Qwen3-0.6B-GGUF:Q8_0         OWNER/REPO[:TYPE]; the usual type is Q4_K_M
    edge pull https://huggingface.co/OWNER/REPO/blob/main/model.gguf

    Stop it with Ctrl-C: the same command goes on where it stopped. HF_HOME, HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE
    work as everywhere.
    """
    if list_aliases or name is None:
        _print_aliases(as_json=as_json)
        return
    from edge.errors import HubError
    from edge.model import names
    from edge.model import pull as puller
    from edge.model.hub import Hub

    wanted = names.parse(name)
    if wanted is None:
        raise HubError(name, "is no name of a model on the hub", "name it as OWNER/REPO:TYPE, or see edge pull --list")
    with fetching() as progress:
        paths = puller.pull(Hub.from_environment(notice=_note), wanted, progress, force=force)
    n_bytes = sum(path.stat().st_size for path in paths)
    if as_json:
        click.echo(json.dumps({"name": str(wanted), "paths": [str(path) for path in paths], "n_bytes": n_bytes}))
        return
    click.echo(str(paths[0]))
    parts = f" in {len(paths)} parts" if len(paths) > 1 else ""
    _note(f"{n_bytes / 1e6:,.0f} MB{parts}, hash checked; talk to it: edge chat {name}")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def ls(*, as_json: bool) -> None:
    """List the models on this machine: fetched ones, and those of Ollama, LM Studio and llama.cpp.

    \b
    edge ls
    edge ls --json | jq -r '.models[].name'

    Any name in the list can stand where a command takes a MODEL.
    """
    from edge.model.cache import Cache, found_models
    from edge.model.hub import Hub

    cache = Cache(Hub.from_environment().cache)
    models = [*cache.models(), *found_models()]
    partials = list(cache.partials())
    if as_json:
        document = {
            "models": [_model_document(model) for model in models],
            "broken_off": [{"repo_id": part.repo_id, "n_bytes": part.n_bytes} for part in partials],
        }
        click.echo(json.dumps(document, indent=1, ensure_ascii=False))
        return
    if not models and not partials:
        click.echo("no models yet; try: edge pull qwen3:0.6b", err=True)
    width = max((len(model.name) for model in models), default=0)
    for model in models:
        click.echo(f"{_plain(model.name):<{width}}  {model.n_bytes / 1e6:>9,.0f} MB  {model.keeper}")
    for part in partials:
        _note(f"{part.repo_id}: {part.n_bytes / 1e6:,.0f} MB of a broken-off download; edge pull goes on with it")


@click.command()
@click.argument("name")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def rm(name: str, *, yes: bool) -> None:
    """Remove a fetched model from the cache.

    \b
    edge rm deepseek-r1:1.5b
    edge rm unsloth/Qwen3-0.6B-GGUF:Q8_0 --yes

    Models of other programs are theirs to remove.
    """
    from edge.errors import HubError
    from edge.model.cache import Cache, find_found
    from edge.model.hub import Hub
    from edge.model.names import parse
    from edge.model.shards import stem

    cache, wanted = Cache(Hub.from_environment().cache), parse(name)
    parts = (cache.find(wanted) or cache.weights(wanted)) if wanted else None
    if not parts and (found := find_found(name)):
        raise HubError(name, f"belongs to {found.keeper}", f"remove it there: {found.path}")
    if wanted is None:
        raise HubError(name, "is no name of a fetched model", "edge ls shows them; delete other files yourself")
    if parts and not yes:
        n_bytes = sum(part.stat().st_size for part in parts)
        click.confirm(f"remove {_plain(stem(parts[0].name))} ({n_bytes / 1e6:,.0f} MB)?", abort=True, err=True)
    click.echo(f"{cache.remove(wanted) / 1e6:,.0f} MB are free again")


@click.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def show(name: str, *, as_json: bool) -> None:
    """Show a model: what its file says, and on the hub which types there are. Fetches the header at most.

    \b
    edge show deepseek-r1:1.5b
    edge show unsloth/Qwen3-0.6B-GGUF --json | jq .types
    """
    from edge.model import pull as puller
    from edge.model.facts import describe, to_json
    from edge.model.fit import usual_plan
    from edge.model.gguf import read_model_info
    from edge.model.hub import Hub
    from edge.model.names import is_model, parse, quant_of
    from edge.model.shards import stem

    hub = Hub.from_environment(notice=_note)
    path, wanted = puller.find(name, hub), parse(name)
    remote = puller.look_up(hub, wanted) if path is None and wanted else None
    info = remote.info if remote else read_model_info(path or Path(name))
    facts = describe(info)
    types: list[tuple[str, int]] = []
    if remote:
        repository = remote.repository
        sizes: Counter[str] = Counter()  # a model in several files is one
        for file in repository.files:
            if is_model(file.name):
                sizes[stem(file.name)] += file.n_bytes
        types = [(quant_of(name) or name, n) for name, n in sizes.items()]
        origin = f"{repository.repo_id}, revision {repository.revision[:12]}"
        facts = [("on the hub", origin), ("its licence", repository.licence or "not named"), *facts]
    usual = usual_plan(info)
    memory = usual.footprint.total
    if as_json:
        document = {**to_json(info), "n_memory_bytes": memory}
        document |= {"types": [{"type": quant, "n_bytes": n} for quant, n in types]}
        click.echo(json.dumps(document, indent=1, ensure_ascii=False))
        return
    facts.append(("memory", f"about {memory / 1e9:.2f} GB with {usual.settings.n_ctx_tokens:,} tokens"))
    if types:
        facts.append(("types", ", ".join(f"{_plain(quant)} {n / 1e6:,.0f} MB" for quant, n in types)))
    width = max(len(label) for label, _ in facts)
    for label, value in facts:
        click.echo(f"{label:<{width}}  {value}")


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False), metavar="DIR")
@click.argument("repo_id", metavar="OWNER/REPO")
@click.option("--base-model", metavar="OWNER/REPO", help="The original model.  [as the manifests say]")
@click.option("--licence", "--license", metavar="NAME", help="Its licence.  [as the manifests say]")
@click.option("--private", is_flag=True, help="Make a new repository private.")
@click.option("-y", "--yes", is_flag=True, help="Upload. Without it you see what would be.")
def push(folder: Path, repo_id: str, *, base_model: str | None, licence: str | None, private: bool, yes: bool) -> None:
    """Publish the GGUF files in DIR on the hub, with manifests, passports and a model card.

    \b
    edge push models/ me/DeepSeek-R1-Distill-Qwen-1.5B-GGUF           shows what would be uploaded
    edge push models/ me/DeepSeek-R1-Distill-Qwen-1.5B-GGUF --yes     uploads it

    Every file is read again and compared with its manifest first. A README.md in DIR is taken instead of the card.
    """
    from convert import push as pusher
    from convert.card import collect
    from edge.model.hub import Hub

    hub = Hub.from_environment(notice=_note)
    pusher.check(hub, repo_id)
    publication = collect(folder, base_model=base_model, licence=licence)
    card = pusher.card_of(publication, repo_id, folder)
    if not yes:
        for name, path in sorted(publication.files.items()):
            click.echo(f"{path.stat().st_size / 1e6:>10,.1f} MB  {name}")
        click.echo(f"{len(card) / 1e6:>10,.1f} MB  README.md:\n\n{card.decode(errors='replace')}")
        _note("nothing was uploaded; add --yes to do it")
        return
    click.echo(pusher.push(hub, publication, repo_id, card, private=private, told=_note))


@click.command()
@click.argument("model")
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, metavar="DIR", help="The stick.")
@click.option("--target", type=click.Choice(["aarch64", "x86_64"]), help="Add edge itself, for this kind of board.")
@click.option(
    "--python", "python_version", default="3.11", show_default=True, metavar="3.N", help="The board's Python."
)
def bundle(model: str, *, out: Path, target: str | None, python_version: str) -> None:
    """Put a model on a stick for boards without a network: with its manifest, licence and, if asked, edge itself.

    \b
    edge bundle deepseek-r1:1.5b -o /media/usb
    edge bundle deepseek-r1:1.5b -o /media/usb --target aarch64       for a Raspberry Pi or an RK3588 board

    On the board: sh /media/usb/install.sh, or, where edge is installed: edge install-bundle /media/usb
    """
    from edge.model import bundle as bundler
    from edge.model import pull as puller
    from edge.model.gguf import read_model_info
    from edge.model.hub import Hub
    from edge.model.names import parse

    hub = Hub.from_environment(notice=_note)
    with fetching() as progress:
        path = puller.resolve(model, hub, progress)
    wanted = None if Path(model).expanduser().exists() else parse(model)
    parts = read_model_info(path).paths
    is_cached = path.parent.parent.name == "snapshots"
    repo_id = wanted.repo_id if wanted and is_cached else None
    copies = bundler.make(parts, out, repo_id, path.parent.name if repo_id else None)
    if not any(copy.name.upper().startswith(("LICEN", "NOTICE")) for copy in copies):
        _note("no licence text lies beside the model; look at its card before you pass it on")
    if target:
        _note(f"fetching edge and all it needs for {target}, Python {python_version}")
        _note(f"{bundler.add_wheels(out, target, python_version)} packages")
    for copy in copies:
        click.echo(str(copy))


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
def install_bundle(folder: Path) -> None:
    """Install the model of a bundle into this machine's cache; every file is checked against its hash.

    \b
    edge install-bundle /media/usb
    """
    from edge.model.bundle import Bundle
    from edge.model.download import download
    from edge.model.hub import Hub
    from edge.model.names import is_model, quant_of
    from edge.model.shards import siblings

    found = Bundle.open(folder, Hub.from_environment().cache)
    with fetching() as progress:
        paths = download(found, found.repository, found.repository.files, progress)
    for path in paths:
        if is_model(path.name) and path == siblings(path)[0]:
            click.echo(str(path))
            _note(f"talk to it: edge chat {found.repository.repo_id}:{quant_of(path.name) or path.name}")


@contextmanager
def fetching() -> Iterator[Callable[[Progress], None]]:
    """A progress bar with rate and time left on stderr; after Ctrl-C, how to go on."""
    from rich import progress as rich
    from rich.console import Console

    columns = (rich.TextColumn("{task.description}"), rich.BarColumn(), rich.DownloadColumn())
    speed = (rich.TransferSpeedColumn(), rich.TimeRemainingColumn())
    try:
        with rich.Progress(*columns, *speed, console=Console(stderr=True), transient=True) as bar:
            task: rich.TaskID | None = None

            def show(progress: Progress) -> None:
                nonlocal task
                if task is None:  # what was there before is no part of the rate
                    task = bar.add_task(progress.phase, total=progress.n_bytes_total, completed=progress.n_bytes_done)
                name = _plain(progress.file.rpartition("/")[2])
                text = f"{progress.phase} {name}"
                if progress.phase == "check":
                    bar.update(task, description=text)
                else:
                    bar.update(task, description=text, completed=progress.n_bytes_done)

            yield show
    except KeyboardInterrupt:
        _note("stopped; the same command goes on from here")
        raise


def _model_document(model: LocalModel) -> dict[str, Any]:
    return {
        "name": model.name,
        "path": str(model.path),
        "n_bytes": model.n_bytes,
        "type": model.quant,
        "keeper": model.keeper,
        "repo_id": model.repo_id,
        "revision": model.revision,
    }


def _print_aliases(*, as_json: bool) -> None:
    from dataclasses import asdict

    from edge.model.names import ALIASES

    if as_json:
        click.echo(json.dumps({name: asdict(alias) for name, alias in ALIASES.items()}, indent=1))
        return
    click.echo(f"{'name':18}{'file':>8}{'memory':>9}  {'licence':12}repository")
    for name, alias in ALIASES.items():
        sizes = f"{alias.n_file_bytes / 1e9:>5.1f} GB{alias.n_memory_bytes / 1e9:>6.1f} GB"
        click.echo(f"{name:18}{sizes}  {alias.licence:12}{alias.repo_id}")


def _plain(text: str) -> str:
    """Names come from strangers: no control characters reach the terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _note(text: str) -> None:
    click.echo(_plain(text), err=True)
