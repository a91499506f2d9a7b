"""`edge service`: write, show, start and remove the systemd unit of `edge serve`. What it says is edge.unit's."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import pwd
import secrets
import shutil
import socket
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from edge.board.options import CTX, FORCE
from edge.config import HOST, PORT, EngineSettings, cache_dir
from edge.errors import OutputError, ServiceError
from edge.unit import MARK, NAME, Scope, Unit, memory_max, service_board, service_cpus

if TYPE_CHECKING:
    from edge.board.plan import Plan, Wish
    from edge.model.gguf import ModelInfo

PROJECT = Path(__file__).resolve().parents[1]
KEY_BYTES = 32
ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - listening there was asked for
NO_MEMORY_LIMIT = (
    "Note: this kernel limits no memory, so MemoryMax does nothing; on Raspberry Pi OS add cgroup_enable=memory to "
    "/boot/firmware/cmdline.txt"
)


@dataclass(frozen=True)
class Place:
    """Where a scope keeps its unit and its settings. root: / but for tests."""

    scope: Scope
    unit_file: Path
    environment_file: Path  # 0600: it holds the key

    @classmethod
    def of(cls, scope: Scope, root: Path = Path("/")) -> Place:
        if scope == "system":
            return cls(scope, root / "etc/systemd/system" / NAME, root / "etc/edge/service.env")
        config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
        return cls(scope, config / "systemd/user" / NAME, config / "edge/service.env")

    @classmethod
    def installed(cls, wants_user: bool) -> Place:
        """The service that status, logs and uninstall mean: the system's where there is one, else the user's."""
        for scope in ("user",) if wants_user else ("system", "user"):
            place = cls.of(scope)  # type: ignore[arg-type]
            if place.unit_file.exists():
                return place
        raise ServiceError("no service is installed", "install one with: edge service install MODEL")

    def systemctl(self, *words: str) -> list[str]:
        return ["systemctl", *(["--user"] if self.scope == "user" else []), *words]


of_user = click.option("--user", "of_user", is_flag=True, help="Your own service, not the system's.")


@click.group()
def service() -> None:
    """Keep `edge serve` running: a systemd service, from boot on.

    \b
    sudo .venv/bin/edge service install model.gguf       for the whole machine
    edge service install model.gguf --user               for yourself, without root
    edge service status | logs | uninstall
    """


@service.command()
@click.argument("model", required=False)
@click.argument("serve_options", nargs=-1, type=click.UNPROCESSED, metavar="[-- SERVE OPTIONS]")
@of_user
@click.option("--host", default=HOST, show_default=True, help="Address to listen on; 0.0.0.0 is the whole network.")
@click.option("--port", default=PORT, show_default=True, type=click.IntRange(1, 65535))
@CTX
@FORCE
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--dry-run", is_flag=True, help="Show the unit, write nothing.")
@click.pass_context
def install(
    context: click.Context, model: str | None, serve_options: tuple[str, ...], *, of_user: bool, host: str, port: int,
    ctx: int | None, force: bool, yes: bool, dry_run: bool,
) -> None:  # fmt: skip
    """Write the unit, show it, and start it when you say yes. No MODEL means the bundled demo.

    \b
    edge service install model.gguf --host 0.0.0.0       a key is made, and shown once
    edge service install model.gguf -- --json-log        what follows -- goes to edge serve
    """
    from edge.model.gguf import read_model_info
    from edge.model.pull import local

    if model is not None and model.startswith("-"):
        serve_options, model = (model, *serve_options), None
    scope: Scope = "user" if of_user else "system"
    place = Place.of(scope)
    asked = [*(["--ctx", str(ctx)] if ctx else []), *(["--force"] if force else [])]
    options = ("--host", host, "--port", str(port), *asked, *serve_options)
    check_address(host, port)
    info = read_model_info(local(model).absolute()) if model else None
    plan = make_service_plan(info, wish_of(context, (*([model] if model else []), *options)))
    unit = make_unit(place, info, plan, options, is_local=is_loopback(host))
    click.echo(str(unit), nl=False)
    for note in plan.notes:
        click.echo(f"Note: {note}", err=True)
    for path in unit.temporary:
        click.echo(f"Note: {path} may be gone after the next boot; move it to a folder that lasts", err=True)
    click.echo(f"\nThis goes to {place.unit_file}", err=True)
    if not limits_memory():
        click.echo(NO_MEMORY_LIMIT, err=True)
    if dry_run:
        return
    refuse_to_write(place)
    if not yes and not sys.stdin.isatty():
        raise ServiceError("nothing was written, because nobody can be asked here", "say it with --yes")
    if not yes:
        click.confirm("Write it, start it now and at every boot?", abort=True, err=True)
    key = None if is_loopback(host) else store_key(place.environment_file)
    for folder in unit.writes:
        folder.mkdir(parents=True, exist_ok=True)
    write(place.unit_file, str(unit), 0o644)
    run(place.systemctl("daemon-reload"))
    run(place.systemctl("enable", NAME))
    run(place.systemctl("restart", NAME))  # not enable --now: an older unit may be running
    if scope == "user":
        linger()
    click.echo(f"started: {url(host, port)}; see: edge service status", err=True)
    if key:
        click.echo(f"Key, shown this once and kept in {place.environment_file}: {key}", err=True)


@service.command()
@of_user
def status(of_user: bool) -> None:
    """Is it running, since when, with how much memory. Exits as systemctl does: 0 running, 3 not."""
    place = Place.installed(of_user)
    sys.exit(subprocess.call(need(place.systemctl("status", "--no-pager", NAME))))


@service.command()
@of_user
@click.option("-f", "--follow", is_flag=True, help="Go on showing new lines.")
@click.option("-n", "--lines", default=100, show_default=True, type=click.IntRange(1), help="How many.")
def logs(of_user: bool, follow: bool, lines: int) -> None:
    """What it said last."""
    scope = Place.installed(of_user).scope
    which = ["--user-unit" if scope == "user" else "--unit", NAME]
    follows = ["--follow"] if follow else []
    sys.exit(subprocess.call(need(["journalctl", *which, "--lines", str(lines), "--no-pager", *follows])))


@service.command()
@of_user
def uninstall(of_user: bool) -> None:
    """Stop it and remove the unit. Key, conversations and models stay."""
    place = Place.installed(of_user)
    refuse_to_write(place)
    run(place.systemctl("disable", "--now", NAME))
    place.unit_file.unlink()
    run(place.systemctl("daemon-reload"))
    kept = [
        place.environment_file,
        *(map(Path, ("/var/lib/edge", "/var/cache/edge")) if place.scope == "system" else []),
    ]
    left = " ".join(str(path) for path in kept if path.exists())
    click.echo(f"removed {place.unit_file}" + (f"; still there: {left}" if left else ""), err=True)


# ---- what the unit needs to know


def wish_of(context: click.Context, words: tuple[str, ...]) -> Wish:
    """What the unit's words ask of the plan, as `edge serve` reads them; it refuses those that it does not know."""
    from edge.board.plan import Wish

    group = cast("click.Group", context.find_root().command)
    serve = group.get_command(context, "serve")
    assert serve is not None
    given = serve.make_context("edge serve", list(words)).params
    return Wish(given["ctx"], given["slots"], given["threads"], given["gpu_layers"], given["force"])


def make_service_plan(info: ModelInfo | None, wish: Wish) -> Plan:
    """How the service will run its model, on this machine as it is at boot. None: the demo. Raises NoMemoryError.

    What `edge tune` found is left out: the service has a cache folder of its own.
    """
    from edge.board.plan import make_plan, this_board
    from edge.demo import demo_model
    from edge.model.gguf import read_model_info

    info = info or read_model_info(demo_model())
    return make_plan(info, wish, service_board(this_board()), EngineSettings.n_slots, use_tuned=False)


def make_unit(place: Place, info: ModelInfo | None, plan: Plan, options: tuple[str, ...], *, is_local: bool) -> Unit:
    """The unit for this machine, this environment and this plan. Raises where nobody could run it."""
    program = Path(sys.executable).parent / "edge"
    start = [str(program)] if program.exists() else [sys.executable, "-m", "edge.cli"]
    command = (*start, "serve", *([str(info.path)] if info else []), *options)
    for word in command:
        if not word.isprintable():
            raise ServiceError(f"{word!r} has a control character, which a unit cannot hold", "rename it")
    reads = tuple(dict.fromkeys([Path(sys.prefix), Path(sys.base_prefix), PROJECT, *(info.paths if info else [])]))
    return Unit(
        scope=place.scope,
        command=command,
        user=None if place.scope == "user" else service_user(reads),
        environment_file=place.environment_file,
        reads=reads,
        writes=() if place.scope == "system" else own_folders(),
        cpus=service_cpus(plan),
        n_memory_bytes_max=memory_max(plan),
        is_local=is_local,
        has_gpu=any(device.kind in ("gpu", "igpu") for device in plan.board.devices),
    )


def service_user(reads: tuple[Path, ...]) -> str | None:
    """Who runs the system's service: somebody made up by systemd (None) where everybody may read all that it reads,
    else the person who called sudo. Never root."""
    private = next((path for path in reads if not others_may_read(path)), None)
    if private is None:
        return None
    caller = os.environ.get("SUDO_USER") or pwd.getpwuid(os.getuid()).pw_name
    if caller != "root":
        return caller
    raise ServiceError(
        f"{private} can be read by root only, and the service does not run as root",
        "move the project and the model to a place like /opt/edge, or install with --user",
    )


def others_may_read(path: Path) -> bool:
    try:
        above = all(parent.stat().st_mode & stat.S_IXOTH for parent in path.parents)
        return above and bool(path.stat().st_mode & stat.S_IROTH)
    except OSError:
        return False


def own_folders() -> tuple[Path, ...]:
    """Where a user's programs keep what they make."""
    home = Path.home()
    data = Path(os.environ.get("XDG_DATA_HOME") or home / ".local/share")
    state = Path(os.environ.get("XDG_STATE_HOME") or home / ".local/state")
    return tuple(dict.fromkeys([cache_dir(), data / "edge", state / "edge"]))


def is_loopback(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def check_address(host: str, port: int) -> None:
    """Raise where no server could ever listen."""
    try:
        socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        raise ServiceError(
            f"{host[:80]!r} is no address", "give --host one of this machine's, or 0.0.0.0 for all"
        ) from None


def url(host: str, port: int) -> str:
    """An address that works from this machine."""
    host = ANY_ADDRESS.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def limits_memory(root: Path = Path("/")) -> bool:
    """Does this kernel keep MemoryMax? Raspberry Pi OS comes with that switched off. Control groups 2, or 1."""
    groups = root / "sys/fs/cgroup"
    controllers = groups / "cgroup.controllers"
    if controllers.exists():
        return "memory" in controllers.read_text().split()
    return (groups / "memory/memory.limit_in_bytes").exists()


# ---- writing and starting


def refuse_to_write(place: Place) -> None:
    """Raise where the unit cannot be written, before anything is."""
    if place.scope == "system" and os.geteuid() != 0:
        raise OutputError(place.unit_file, "only root may change it", "run it with sudo, or add --user")
    with contextlib.suppress(FileNotFoundError):
        if not place.unit_file.read_text(encoding="utf-8").startswith(MARK):
            raise OutputError(place.unit_file, "was not written by this command", "move it away")
    run(place.systemctl("show", "--property=Version"))  # is there a systemd that answers?


def store_key(path: Path) -> str | None:
    """A new key in the file that only its owner may read; None where one is there already."""
    if path.exists():
        return None
    key = secrets.token_urlsafe(KEY_BYTES)
    write(path, f"EDGE_SERVE_API_KEY={key}\n", 0o600)
    return key


def write(path: Path, text: str, mode: int) -> None:
    """The whole file or none, never readable by more than mode says."""
    temporary = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w", encoding="utf-8") as file:
            file.write(text)
            os.fsync(file.fileno())
        temporary.chmod(mode)  # the umask may have taken more
        temporary.replace(path)
    except OSError as error:
        raise OutputError(path, f"cannot be written ({error.strerror})", "mend that, then try again") from error


def need(command: list[str]) -> list[str]:
    if shutil.which(command[0]) is None:
        raise ServiceError(
            f"this machine has no {command[0]}, so no systemd", "start `edge serve` from what starts programs here"
        )
    return command


def run(command: list[str]) -> None:
    done = subprocess.run(need(command), capture_output=True, text=True)
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split()) or f"exit code {done.returncode}"
        raise ServiceError(f"`{' '.join(command)}` failed: {said[:300]}", "mend that, then try again")


def linger() -> None:
    """Ask that the user's services run without a login."""
    if shutil.which("loginctl") and subprocess.call(["loginctl", "enable-linger"], stderr=subprocess.DEVNULL) == 0:
        return
    click.echo("Note: it stops when you log out, until you say: sudo loginctl enable-linger $USER", err=True)
