"""`edge service` under a real systemd: installed, running as a user made up for it, killed, back again, removed."""

import re
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from edge.unit import NAME
from tests.serve.conftest import QUESTION, eventually
from tests.systemd import Systemd, booted, why_not

pytestmark = pytest.mark.skipif(bool(why_not()), reason=f"a systemd of its own: {why_not()}")
EDGE = (sys.executable, "-m", "edge.cli")
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def systemd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Systemd]:
    with booted(tmp_path_factory.mktemp("systemd")) as found:
        yield found


class Service:
    """The service, installed on a free port. The network is this machine's own."""

    def __init__(self, systemd: Systemd, model: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.systemd = systemd
        words = ("service", "install", model, "--yes", "--port", str(self.port), "--", "--threads", "1")
        self.installed = systemd.run(*EDGE, *words)

    @property
    def main_pid(self) -> int:
        """As its systemd counts."""
        return int(self.systemd.show(NAME, "MainPID") or 0)

    def inside(self, path: str) -> str:
        """A file as it is in the namespaces of that systemd."""
        return self.systemd.run("cat", path).stdout

    def as_it(self, *words: str) -> int:
        """The exit code of words, run in the service's own view of the files, as its user."""
        uid = self.inside(f"/proc/{self.main_pid}/status").partition("Uid:")[2].split()[0]
        view = ("nsenter", "--target", str(self.main_pid), "--mount", "--setuid", uid, "--setgid", uid, "--")
        return self.systemd.run(*view, *words).returncode

    def engine_pid(self) -> int:
        """As its systemd counts."""
        done = self.systemd.run("pgrep", "--parent", str(self.main_pid), "--full", "edge.engine.worker")
        return int(done.stdout.split()[0]) if done.stdout.strip() else 0

    def state(self) -> str:
        try:
            return str(httpx2.get(f"http://127.0.0.1:{self.port}/health", timeout=5).json()["status"])
        except httpx2.HTTPError:
            return "gone"

    def answer(self) -> str:
        body = {"messages": QUESTION, "temperature": 0}
        reply = httpx2.post(f"http://127.0.0.1:{self.port}/v1/chat/completions", json=body, timeout=30)
        return str(reply.json()["choices"][0]["message"]["content"])


@pytest.fixture(scope="module")
def service(systemd: Systemd, demo_model: Path) -> Iterator[Service]:
    folder = Path(tempfile.mkdtemp())  # hidden from the service, unless it is shown to it
    folder.chmod(0o755)
    model = Path(shutil.copy(demo_model, folder))
    model.chmod(0o644)
    found = Service(systemd, model)
    assert found.installed.returncode == 0, found.installed.stderr + systemd.log_file.read_text()
    eventually(lambda: found.state() == "ok", 30)
    yield found
    shutil.rmtree(folder)


def line(text: str, name: str) -> str:
    found = re.search(rf"^{name}[=:]\s*(.*)$", text, re.MULTILINE)
    assert found, name
    return found[1]


def test_it_runs_and_answers(service: Service) -> None:
    assert f"started: http://127.0.0.1:{service.port}" in service.installed.stderr
    assert service.systemd.show(NAME, "ActiveState") == "active"
    assert service.systemd.show(NAME, "UnitFileState") == "enabled"
    assert service.answer() == "347 + 85 = 432"
    status = service.systemd.run(*EDGE, "service", "status")
    assert (status.returncode, "active (running)" in status.stdout) == (0, True)


def test_it_is_a_user_made_up_for_it_without_rights(service: Service) -> None:
    status = service.inside(f"/proc/{service.main_pid}/status")
    uid = int(line(status, "Uid").split()[0])
    assert 61184 <= uid <= 65519, "the range of systemd's dynamic users"
    assert line(status, "CapEff").strip("0") == ""
    assert (line(status, "NoNewPrivs"), line(status, "Seccomp")) == ("1", "2")


def test_it_writes_its_own_folders_and_nothing_else(service: Service) -> None:
    for path in ("/var/lib/edge/x", "/var/cache/edge/x", "/tmp/x"):
        assert service.as_it("touch", path) == 0, path
    for path in ("/etc/x", "/usr/x", f"{ROOT}/x", "/var/lib/x", "/root/x", "/x"):
        assert service.as_it("touch", path) != 0, path
    assert not Path("/var/lib/edge/x").exists(), "nothing of it is on this machine"


def test_its_cores_and_its_memory_are_those_of_the_unit(service: Service) -> None:
    unit = service.installed.stdout
    status = service.inside(f"/proc/{service.main_pid}/status")
    allowed = [int(cpu) for part in line(status, "Cpus_allowed_list").split(",") for cpu in spread(part)]
    assert allowed == [int(cpu) for cpu in line(unit, "CPUAffinity").split()]
    n_megabytes = int(line(unit, "MemoryMax").removesuffix("M"))
    assert int(service.systemd.show(NAME, "MemoryMax")) == n_megabytes << 20
    current = service.systemd.show(NAME, "MemoryCurrent")
    if current.isdigit() and int(current) < 1 << 60:  # this kernel counts memory
        assert int(current) < (n_megabytes << 20) / 2
    assert service.inside(f"/proc/{service.main_pid}/oom_score_adj").strip() == "300"
    assert service.inside(f"/proc/{service.engine_pid()}/oom_score_adj").strip() == "800"


def spread(part: str) -> range:
    first, _, last = part.partition("-")
    return range(int(first), int(last or first) + 1)


def test_a_killed_engine_comes_back_under_the_same_server(service: Service) -> None:
    server, engine = service.main_pid, service.engine_pid()
    assert engine
    service.systemd.run("kill", "-KILL", str(engine))
    eventually(lambda: service.state() == "ok" and service.engine_pid() not in (0, engine), 30)
    assert service.main_pid == server
    assert service.answer() == "347 + 85 = 432"


def test_a_killed_server_comes_back_and_leaves_no_engine_behind(service: Service) -> None:
    server, engine = service.main_pid, service.engine_pid()
    service.systemd.run("kill", "-KILL", str(server))
    eventually(lambda: service.state() == "ok" and service.main_pid not in (0, server), 40)
    assert service.answer() == "347 + 85 = 432"
    assert service.engine_pid() != engine
    assert service.systemd.run("pgrep", "--count", "--full", "edge.engine.worker").stdout.strip() == "1"


def test_a_stop_is_clean_and_a_mistake_in_the_settings_is_not_tried_for_ever(service: Service) -> None:
    assert service.systemd.run("systemctl", "stop", NAME).returncode == 0
    assert service.systemd.show(NAME, "Result") == "success"
    assert service.state() == "gone"
    with_mistake = "mkdir -p /etc/edge && echo EDGE_SERVE_QUEUE=none > /etc/edge/service.env"
    service.systemd.run("sh", "-c", with_mistake)
    service.systemd.run("systemctl", "start", NAME)
    eventually(lambda: service.systemd.show(NAME, "ActiveState") == "failed", 20)
    assert service.systemd.show(NAME, "ExecMainStatus") == "2"
    service.systemd.run("rm", "/etc/edge/service.env")


def test_removed_it_is_gone_and_says_what_stays(service: Service) -> None:
    done = service.systemd.run(*EDGE, "service", "uninstall")
    assert done.returncode == 0, done.stderr
    assert "still there: /var/lib/edge /var/cache/edge" in done.stderr
    assert service.state() == "gone"
    assert service.systemd.show(NAME, "LoadState") == "not-found"
    status = service.systemd.run(*EDGE, "service", "status")
    assert (status.returncode, "no service is installed" in status.stderr) == (1, True)
