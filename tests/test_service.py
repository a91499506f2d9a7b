"""`edge service`: the unit as systemd's own checker reads it; the commands with a stand-in for systemctl."""

import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner

from edge import service, unit
from edge.board import plan as planning
from edge.board.memory import Memory
from edge.board.plan import Board, Wish, make_plan
from edge.board.topology import read_topology
from edge.cli import cli
from edge.engine.client import Engine
from edge.errors import NoMemoryError, OutputError, ServiceError
from edge.model.gguf import ModelInfo, read_model_info
from edge.service import Place
from edge.unit import MARK, NAME, Unit, memory_max, quoted, service_board, service_cpus
from tests.board.trees import BOARDS, build
from tests.test_cli import EDGE

analyzes = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="needs systemd-analyze (apt-get install systemd)"
)
NASTY = 'a "b" 100%\\ $HOME ;c.gguf'


def a_unit(**changes: object) -> Unit:
    plain = Unit(
        scope="system",
        command=(sys.executable, "serve", "model.gguf"),
        user=None,
        environment_file=Path("/etc/edge/service.env"),
        reads=(Path("/opt/edge"),),
        writes=(),
        cpus=(0, 1),
        n_memory_bytes_max=1 << 30,
        is_local=True,
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


def analyze(folder: Path, text: str, *words: str) -> subprocess.CompletedProcess[str]:
    (folder / NAME).write_text(text)
    env = {**os.environ, "XDG_RUNTIME_DIR": str(folder), "SYSTEMD_LOG_LEVEL": "info"}
    command = ["systemd-analyze", *words, str(folder / NAME)]
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=60)


class Desk:
    """A home, and a systemctl, journalctl and loginctl that write their calls down. refuses: calls that fail."""

    def __init__(self, folder: Path, refuses: str = "no such call") -> None:
        self.config, self.calls_file, programs = folder / "config", folder / "calls", folder / "bin"
        programs.mkdir()
        for name in ("systemctl", "journalctl", "loginctl"):
            script = f'#!/bin/sh\necho "{name} $*" >> "$CALLS"\ncase "{name} $*" in *{shlex.quote(refuses)}*) '
            (programs / name).write_text(script + "echo 'no bus here' >&2; exit 1 ;; esac\n")
            (programs / name).chmod(0o755)
        self.env = {
            **{name: value for name, value in os.environ.items() if not name.startswith("EDGE_SERVICE")},
            **{"PATH": f"{programs}:/usr/bin:/bin", "HOME": str(folder), "CALLS": str(self.calls_file)},
            **{"XDG_CONFIG_HOME": str(self.config), "XDG_DATA_HOME": str(folder / "data")},
            "XDG_STATE_HOME": str(folder / "state"),
        }
        self.place = Place("user", self.config / "systemd/user" / NAME, self.config / "edge/service.env")

    def edge(self, *words: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
        command = [*EDGE, "service", *map(str, words)]
        return subprocess.run(
            command, capture_output=True, text=True, stdin=subprocess.DEVNULL, env={**self.env, **env}, timeout=60
        )

    def calls(self) -> list[str]:
        calls = self.calls_file.read_text().splitlines() if self.calls_file.exists() else []
        self.calls_file.unlink(missing_ok=True)
        return calls


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


# ---- the text


@analyzes
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"user": "daemon", "reads": (Path("/home/pi/edge"),), "has_gpu": True},
        {"command": (sys.executable, "serve", NASTY, ""), "reads": (Path("/mnt") / NASTY,)},
        {"scope": "user", "writes": (Path("/tmp/a folder/edge"),)},
        {"reads": (Path("/opt/edge"), Path("/tmp/a folder/model.gguf"))},
    ],
    ids=["made-up user", "named user", "nasty path", "user's own", "a model in /tmp"],
)
def test_systemd_finds_nothing_to_say_about_the_unit(tmp_path: Path, changes: dict[str, object]) -> None:
    done = analyze(tmp_path, str(a_unit(**changes)), "verify", "--man=no")
    said = [line for line in done.stderr.splitlines() if NAME in line]
    assert (done.returncode, said) == (0, []), done.stderr


@analyzes
def test_the_checker_above_does_find_a_mistake(tmp_path: Path) -> None:
    done = analyze(tmp_path, str(a_unit()).replace("MemoryMax=", "MemoryMost="), "verify", "--man=no")
    assert "MemoryMost" in done.stderr


@analyzes
@pytest.mark.parametrize(("user", "exposure"), [(None, 15), ("daemon", 15)])
def test_systemd_calls_the_exposure_low(tmp_path: Path, user: str | None, exposure: int) -> None:
    """Of 100; a unit that says nothing has 96, what remains here is the network it is there for."""
    done = analyze(tmp_path, str(a_unit(user=user)), "security", "--offline=true", f"--threshold={exposure}")
    assert done.returncode == 0, done.stdout


def test_no_word_of_the_command_means_more_than_itself() -> None:
    assert quoted("model.gguf") == "model.gguf"
    assert quoted("") == '""'
    assert quoted("my model.gguf") == '"my model.gguf"'
    assert quoted('100% $HOME "x"') == r'"100%% $$HOME \"x\""'


def test_a_service_for_this_machine_alone_talks_to_no_other() -> None:
    lines = "IPAddressAllow=localhost\nIPAddressDeny=any\n"
    assert lines in str(a_unit())
    assert lines not in str(a_unit(is_local=False))


def test_a_home_is_hidden_unless_something_in_it_is_read() -> None:
    assert "ProtectHome=yes\n" in str(a_unit())
    assert "ProtectHome=read-only\n" in str(a_unit(reads=(Path("/opt/edge"), Path("/home/pi/model.gguf"))))


MACHINES = [1 << 30, 2 << 30, 4 << 30, 8 << 30, 16 << 30]
FILES = [2_000_000, 400_000_000, 1_100_000_000, 2_500_000_000, 4_700_000_000, 9_000_000_000]


def a_board(n_bytes: int, n_available_bytes: int | None = None) -> Board:
    memory = Memory(n_bytes, n_available_bytes or n_bytes // 2, n_bytes, None, 0, 0, 0, 4096)
    return Board(read_topology(), memory)


def model_of(path: Path, n_bytes: int) -> ModelInfo:
    """The demo's header with weights of another size."""
    info = read_model_info(path)
    share = n_bytes / sum(tensor.n_bytes for tensor in info.tensors)
    return replace(info, tensors=tuple(replace(one, n_bytes=int(one.n_bytes * share)) for one in info.tensors))


@pytest.mark.parametrize("n_file_bytes", FILES)
@pytest.mark.parametrize("n_machine_bytes", MACHINES)
@pytest.mark.parametrize("n_ctx", [None, 4096])
def test_inside_of_the_limit_the_server_makes_the_plan_that_the_unit_was_made_for(
    demo_model: Path, n_machine_bytes: int, n_file_bytes: int, n_ctx: int | None
) -> None:
    info, wish = model_of(demo_model, n_file_bytes), Wish(n_ctx)
    try:
        plan = make_plan(info, wish, service_board(a_board(n_machine_bytes)), 4, use_tuned=False)
    except NoMemoryError:
        assert n_file_bytes > 0.6 * n_machine_bytes
        return
    n_max = memory_max(plan)
    assert plan.footprint.total < n_max <= 0.9 * n_machine_bytes
    assert f"MemoryMax={n_max >> 20}M\n" in str(a_unit(n_memory_bytes_max=n_max))
    assert n_max % (1 << 20) == 0
    inside = make_plan(info, wish, a_board(n_max, n_max - unit.N_FRONT_BYTES), 4, use_tuned=False)
    assert inside.settings == plan.settings


def test_the_limit_is_what_the_plan_predicts_and_the_margin_that_the_page_states(demo_model: Path) -> None:
    plan = make_plan(read_model_info(demo_model), Wish(4096), service_board(a_board(16 << 30)), 4, use_tuned=False)
    parts = plan.footprint
    room = parts.total + parts.kv + (512 << 20)
    assert 1.2 * room <= memory_max(plan) < 1.2 * room + (1 << 20)
    large = make_plan(model_of(demo_model, 4_700_000_000), Wish(), service_board(a_board(16 << 30)), use_tuned=False)
    assert large.settings.load_mode == "read"
    assert memory_max(large) >= large.footprint.total / 0.6
    page = (Path(__file__).parents[1] / "docs/service.md").read_text(encoding="utf-8")
    assert "the KV cache once more, and 512 MB, and a fifth on top" in page


def test_the_limit_is_far_above_what_the_engine_takes(demo_model: Path) -> None:
    plan = make_plan(read_model_info(demo_model), Wish(n_threads=1), service_board(a_board(16 << 30)), use_tuned=False)
    with Engine(plan.settings) as engine:
        engine.start()
        n_bytes = psutil.Process(engine.pid).memory_info().rss
    assert 10 << 20 < n_bytes < plan.footprint.total * 1.1 < memory_max(plan) / 3


@pytest.mark.parametrize("name", BOARDS)
def test_on_the_cores_of_the_unit_the_engine_gets_those_that_the_plan_gave_it(
    tmp_path: Path, demo_model: Path, name: str
) -> None:
    root = build(name, tmp_path)
    topology = replace(read_topology(root), is_pinnable=True)
    for wish in (Wish(), Wish(n_threads=2), Wish(n_threads=64)):
        plan = make_plan(read_model_info(demo_model), wish, Board(topology, None), use_tuned=False)
        cpus = service_cpus(plan)
        usable = {cpu for cluster in topology.clusters for cpu in cluster.cpus}
        assert set(plan.settings.cpus or usable) <= set(cpus) <= usable
        assert len(cpus) <= len(plan.settings.cpus or usable) + 1
        inside = replace(read_topology(root, allowed=cpus), is_pinnable=True)
        again = make_plan(read_model_info(demo_model), wish, Board(inside, None), use_tuned=False)
        assert (again.settings.n_threads, again.settings.cpus) == (plan.settings.n_threads, plan.settings.cpus)


def test_the_server_of_a_board_with_slow_cores_gets_one_of_them(tmp_path: Path, demo_model: Path) -> None:
    topology = replace(read_topology(build("rk3588", tmp_path)), is_pinnable=True)
    plan = make_plan(read_model_info(demo_model), Wish(), Board(topology, None), use_tuned=False)
    assert service_cpus(plan) == (0, 4, 5, 6, 7)


def test_a_model_in_a_temporary_folder_is_shown_to_the_service_and_told_of(desk: Desk, demo_model: Path) -> None:
    assert "Bind" not in str(a_unit())
    model = Path("/var/tmp/model.gguf")
    assert f"BindReadOnlyPaths={model}\n" in str(a_unit(reads=(Path("/opt/edge"), model)))
    done = desk.edge("install", demo_model, "--user", "--dry-run")
    if demo_model.is_relative_to("/tmp"):
        assert f"Note: {demo_model} may be gone after the next boot; move it" in done.stderr


def test_a_kernel_that_limits_no_memory_is_known(tmp_path: Path) -> None:
    assert not service.limits_memory(tmp_path)
    groups = tmp_path / "sys/fs/cgroup"
    (groups / "memory").mkdir(parents=True)
    (groups / "memory/memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert service.limits_memory(tmp_path), "version 1"
    (groups / "cgroup.controllers").write_text("cpuset cpu io pids\n")
    assert not service.limits_memory(tmp_path), "version 2 without it"
    (groups / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    assert service.limits_memory(tmp_path)


def test_words_for_the_server_reach_the_plan(desk: Desk, demo_model: Path) -> None:
    def limit(*words: str | Path) -> int:
        done = desk.edge("install", demo_model, "--user", "--dry-run", *words)
        assert done.returncode == 0, done.stderr
        found = re.search(r"^MemoryMax=(\d+)M$", done.stdout, re.M)
        assert found
        return int(found[1])

    assert limit("--ctx", "65536") == limit("--", "--ctx", "65536") > limit()
    refused = desk.edge("install", demo_model, "--user", "--dry-run", "--", "--frob")
    assert refused.returncode == 2
    assert "No such option" in refused.stderr
    assert "--frob" in refused.stderr
    assert not refused.stdout


def test_a_model_that_does_not_fit_gets_no_unit_unless_forced(
    demo_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "this_board", lambda: a_board(1 << 30))
    words = ["service", "install", str(demo_model), "--user", "--dry-run", "--ctx", str(1 << 20)]
    refused = CliRunner().invoke(cli, words)
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert re.fullmatch(
        r"Error: \S+ needs [\d,]+ MB with a context of 1,048,576 tokens, .* fits; .*--force\n", refused.stderr
    )
    forced = CliRunner().invoke(cli, [*words, "--force"])
    assert " --ctx 1048576 --force\n" in forced.stdout
    assert "Note: does not fit and was forced" in forced.stderr


# ---- who runs it


def test_a_made_up_user_where_everybody_may_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "others_may_read", lambda path: path != tmp_path)
    assert service.service_user((Path("/usr"),)) is None
    monkeypatch.setenv("SUDO_USER", "pi")
    assert service.service_user((Path("/usr"), tmp_path)) == "pi"
    monkeypatch.setenv("SUDO_USER", "root")
    with pytest.raises(ServiceError, match=r"can be read by root only.*move the project and the model"):
        service.service_user((Path("/usr"), tmp_path))


def test_others_may_read_looks_at_every_folder_above(tmp_path: Path) -> None:
    file = tmp_path / "open/closed/model.gguf"
    file.parent.mkdir(parents=True)
    file.write_text("x")
    mode = {True: 0o755, False: 0o750}
    os_root = Path("/usr/bin/env")
    assert service.others_may_read(os_root)
    assert not service.others_may_read(tmp_path / "missing")
    for folder_open in (True, False):
        file.parent.chmod(mode[folder_open])
        above_open = all(p.stat().st_mode & stat.S_IXOTH for p in file.parent.parents)  # pytest's own folder is 0700
        assert service.others_may_read(file) == (folder_open and above_open)


# ---- the commands


def test_install_shows_writes_and_starts(desk: Desk, demo_model: Path) -> None:
    done = desk.edge("install", demo_model, "--user", "--yes", "--port", "9000", "--", "--json-log")
    assert done.returncode == 0, done.stderr
    text = desk.place.unit_file.read_text()
    assert text == done.stdout, "what is shown is what is written"
    assert re.search(rf"^ExecStart=\S+/edge serve {demo_model} --host 127.0.0.1 --port 9000 .*--json-log$", text, re.M)
    writes = re.search("^ReadWritePaths=(.*)$", text, re.M)
    assert writes
    assert all(Path(folder).is_dir() for folder in writes[1].split())
    assert desk.calls() == [
        "systemctl --user show --property=Version",
        "systemctl --user daemon-reload",
        f"systemctl --user enable {NAME}",
        f"systemctl --user restart {NAME}",
        "loginctl enable-linger",
    ]
    assert "Key" not in done.stderr, "loopback needs none"
    assert not desk.place.environment_file.exists()


def test_a_network_address_gets_a_key_that_only_its_owner_reads_and_keeps_it(desk: Desk, demo_model: Path) -> None:
    first = desk.edge("install", demo_model, "--user", "--yes", "--host", "0.0.0.0")
    assert first.returncode == 0, first.stderr
    file = desk.place.environment_file
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    name, _, key = file.read_text().strip().partition("=")
    assert name == "EDGE_SERVE_API_KEY"
    assert len(key) >= 40
    assert key in first.stderr
    assert key not in first.stdout + desk.place.unit_file.read_text()
    again = desk.edge("install", demo_model, "--user", "--yes", "--host", "0.0.0.0")
    assert file.read_text() == f"{name}={key}\n"
    assert key not in again.stderr, "shown once"


def test_nothing_is_written_when_nobody_says_yes(desk: Desk, demo_model: Path) -> None:
    done = desk.edge("install", demo_model, "--user")
    assert done.returncode == 1
    assert done.stdout.startswith(MARK), "shown all the same"
    assert "Error: nothing was written, because nobody can be asked here; say it with --yes" in done.stderr
    assert desk.edge("install", demo_model, "--user", "--dry-run").returncode == 0
    assert not desk.config.exists()
    assert {"enable" in call for call in desk.calls()} <= {False}


def test_the_demo_needs_no_model(desk: Desk) -> None:
    done = desk.edge("install", "--user", "--dry-run", "--", "--json-log")
    assert re.search(r"/edge serve --host \S+ --port 8080 --json-log$", done.stdout, re.M)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [("missing.gguf", "there is no such file"), ("line\nUser=root.gguf", "there is no such file")],
)
def test_a_model_that_is_none_stops_it(desk: Desk, name: str, sentence: str) -> None:
    done = desk.edge("install", name, "--user", "--yes")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert not desk.config.exists()


def test_a_path_cannot_smuggle_a_line_into_the_unit(desk: Desk, demo_model: Path, tmp_path: Path) -> None:
    evil = tmp_path / "a\nUser=root\n.gguf"
    shutil.copy(demo_model, evil)
    done = desk.edge("install", evil, "--user", "--yes")
    assert done.returncode == 1
    assert "control character" in done.stderr
    assert not desk.place.unit_file.exists()


def test_a_unit_that_somebody_else_wrote_stays(desk: Desk, demo_model: Path) -> None:
    desk.place.unit_file.parent.mkdir(parents=True)
    desk.place.unit_file.write_text("[Service]\n")
    done = desk.edge("install", demo_model, "--user", "--yes")
    assert done.returncode == 1
    assert "was not written by this command; move it away" in done.stderr
    assert desk.edge("uninstall", "--user").returncode == 1
    assert desk.place.unit_file.read_text() == "[Service]\n"


def test_without_a_systemd_nothing_is_written(tmp_path: Path, demo_model: Path) -> None:
    desk = Desk(tmp_path, refuses="show --property")
    done = desk.edge("install", demo_model, "--user", "--yes")
    assert done.returncode == 1
    assert "`systemctl --user show --property=Version` failed: no bus here; mend that" in done.stderr
    assert not desk.config.exists()
    empty = tmp_path / "empty"
    empty.mkdir()
    done = desk.edge("install", demo_model, "--user", "--yes", PATH=str(empty))
    assert "this machine has no systemctl, so no systemd; start `edge serve`" in done.stderr


def test_only_root_writes_the_systems_unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(OutputError, match="only root may change it; run it with sudo, or add --user"):
        service.refuse_to_write(Place.of("system", tmp_path))


def test_status_logs_and_uninstall_find_what_was_installed(desk: Desk, demo_model: Path) -> None:
    for command in ("status", "logs", "uninstall"):
        done = desk.edge(command, "--user")
        assert done.returncode == 1
        assert "Error: no service is installed; install one with: edge service install MODEL" in done.stderr
    desk.edge("install", demo_model, "--user", "--yes", "--host", "192.0.2.1")
    desk.calls()
    assert desk.edge("status", "--user").returncode == 0
    assert desk.edge("logs", "--user", "-f", "-n", "5").returncode == 0
    done = desk.edge("uninstall", "--user")
    assert done.returncode == 0, done.stderr
    assert f"still there: {desk.place.environment_file}" in done.stderr
    assert not desk.place.unit_file.exists()
    assert desk.calls() == [
        f"systemctl --user status --no-pager {NAME}",
        f"journalctl --user-unit {NAME} --lines 5 --no-pager --follow",
        "systemctl --user show --property=Version",
        f"systemctl --user disable --now {NAME}",
        "systemctl --user daemon-reload",
    ]


def test_status_exits_as_systemctl_does(tmp_path: Path, demo_model: Path) -> None:
    desk = Desk(tmp_path, refuses="status")
    desk.edge("install", demo_model, "--user", "--yes")
    assert desk.edge("status", "--user").returncode == 1


@pytest.mark.parametrize(
    ("host", "port", "address"),
    [
        ("0.0.0.0", 80, "http://127.0.0.1:80"),
        ("::", 8080, "http://[::1]:8080"),
        ("fe80::1", 8080, "http://[fe80::1]:8080"),
        ("pi.local", 8080, "http://pi.local:8080"),
    ],
)
def test_the_address_shown_works_from_here(host: str, port: int, address: str) -> None:
    assert service.url(host, port) == address


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_is_known_by_any_name(host: str) -> None:
    assert service.is_loopback(host)
    assert not service.is_loopback(f"{host}.example.org")


def test_the_command_of_the_unit_is_one_that_the_server_takes(desk: Desk, demo_model: Path) -> None:
    serve = pytest.importorskip("edge.serve.cli").serve
    done = desk.edge("install", demo_model, "--user", "--dry-run", "--host", "::1", "--", "--allow-host", "a.example")
    command = re.search(r"^ExecStart=\S+ serve (.*)$", done.stdout, re.M)
    assert command
    given = serve.make_context("serve", shlex.split(command[1])).params
    assert (given["model"], given["host"], given["port"], given["ctx"]) == (str(demo_model), "::1", 8080, None)
    assert given["allow_host"] == ("a.example",)
    assert any(param.name == "api_key" and "EDGE_SERVE_API_KEY" in param.envvar for param in serve.params)
