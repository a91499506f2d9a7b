"""`edge history`: the kept conversations on the command line. Results to stdout, for pipes too."""

import json
import time
from typing import IO, TYPE_CHECKING

import click

from edge.errors import EdgeError, TransferError

if TYPE_CHECKING:  # `edge --help` imports this file
    from edge.history import History
    from edge.messages import Conversation


class WhichError(EdgeError):
    """An ID that names none, or several."""

    def __init__(self, which: str, n_found: int) -> None:
        super().__init__(which, n_found)
        self.which, self.n_found = which, n_found

    def __str__(self) -> str:
        found = "several conversations begin" if self.n_found else "no conversation begins"
        return f"{found} with {self.which[:40]!r}; edge history list shows them"


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
which_argument = click.argument("which", metavar="ID")


@click.group()
def history() -> None:
    """List, search, show, export and delete kept conversations.

    \b
    edge history list
    edge history search 解方程
    edge history show 3f2a                       the beginning of an ID is enough
    edge history export 3f2a -o sums.json
    """


@history.command("list")
@click.option("--folder", metavar="NAME", help="Only those in this folder.")
@click.option("-n", "--number", type=click.IntRange(1, 100_000), default=50, show_default=True, help="At most so many.")
@json_option
def list_(folder: str | None, number: int, *, as_json: bool) -> None:
    """Show the latest conversations.

    \b
    edge history list --folder school
    """
    with opened() as kept:
        show_list(kept.find(folder=folder, limit=number), as_json=as_json)


@history.command()
@click.argument("words", nargs=-1, required=True)
@click.option("-n", "--number", type=click.IntRange(1, 100_000), default=50, show_default=True, help="At most so many.")
@json_option
def search(words: tuple[str, ...], number: int, *, as_json: bool) -> None:
    """Find conversations in which one message, or the title, holds all WORDS.

    \b
    edge history search 解方程
    edge history search carry hundreds
    """
    with opened() as kept:
        show_list(kept.find(" ".join(words), limit=number), as_json=as_json)


@history.command()
@which_argument
def show(which: str) -> None:
    """Print the shown branch of a conversation as Markdown.

    \b
    edge history show 3f2a
    """
    from edge.transfer import export_markdown

    with opened() as kept:
        talk = find(kept, which)
        click.echo(export_markdown(talk, kept.branch(talk.id, talk.leaf)), nl=False)


@history.command()
@which_argument
@click.option("--format", "kind", type=click.Choice(["json", "markdown"]), default="json", show_default=True)
@click.option("-o", "--out", type=click.File("x", encoding="utf-8", lazy=False), default="-", metavar="FILE")
def export(which: str, kind: str, out: IO[str]) -> None:
    """Write a conversation, every branch of it as JSON, or the shown one as Markdown.

    \b
    edge history export 3f2a -o sums.json
    """
    from edge.transfer import export_json, export_markdown

    with opened() as kept:
        talk = find(kept, which)
        if kind == "json":
            click.echo(export_json(talk, kept.messages(talk.id)), file=out)
        else:
            click.echo(export_markdown(talk, kept.branch(talk.id, talk.leaf)), file=out, nl=False)


@history.command("import")
@click.argument("file", type=click.File("rb"))
def import_(file: IO[bytes]) -> None:
    """Take in a conversation that was exported as JSON. Prints its new ID.

    \b
    edge history import sums.json
    """
    from edge.transfer import import_json

    with opened() as kept:
        talk = kept.insert(*import_json(file.read()))
        if not kept.saving:
            raise TransferError(kept.problem or "it could not be saved")
        click.echo(talk.id)


@history.command()
@which_argument
def rm(which: str) -> None:
    """Delete a conversation. It can be restored for ten minutes.

    \b
    edge history rm 3f2a
    edge history restore ID
    """
    with opened() as kept:
        talk = find(kept, which)
        kept.delete(talk.id)
        click.echo(f"deleted; for ten minutes this brings it back: edge history restore {talk.id}", err=True)


@history.command()
@which_argument
def restore(which: str) -> None:
    """Bring a conversation back that was deleted less than ten minutes ago. Takes the whole ID."""
    with opened() as kept:
        kept.restore(which)


def opened() -> "History":
    """The user's history; what is wrong with it goes to stderr."""
    from edge.history import History

    kept = History()
    if kept.problem is not None:
        click.echo(kept.problem, err=True)
    return kept


def find(kept: "History", which: str) -> "Conversation":
    """The one conversation whose id begins with which."""
    found = [talk for talk in kept.find(limit=100_000) if talk.id.startswith(which)]
    if len(found) != 1:
        raise WhichError(which, len(found))
    return found[0]


def show_list(found: "list[Conversation]", *, as_json: bool) -> None:
    """A line for each conversation, and one for where it was found."""
    if as_json:
        from edge.messages import to_json

        click.echo(json.dumps([to_json(talk) for talk in found], ensure_ascii=False, indent=1))
        return
    for talk in found:
        day = time.strftime("%Y-%m-%d %H:%M", time.localtime(talk.updated))
        place = f"  [{talk.folder}]" if talk.folder else ""
        click.echo(f"{talk.id[:8]}  {day}  {talk.n_messages:>4}  {talk.title or 'without a title'}{place}")
        if talk.snippet:
            click.echo(f"          {talk.snippet}")
