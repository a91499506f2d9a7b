"""The Dockerfile without Docker: what it runs and copies exists, what it promises holds. Not covered: the build."""

import configparser
import fnmatch
import http.server
import json
import os
import re
import shlex
import subprocess
import sys
import threading
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
IGNORED = [
    line for line in (ROOT / ".dockerignore").read_text().splitlines() if line.strip() and not line.startswith("#")
]


def instructions() -> list[tuple[str, str]]:
    """(name, rest) in order: comments out, continued lines joined, as Docker does it."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in lines if line.strip())]


def stages() -> list[list[tuple[str, str]]]:
    found: list[list[tuple[str, str]]] = []
    for name, rest in instructions():
        if name == "FROM":
            found.append([])
        if found:
            found[-1].append((name, rest))
    return found


def all_of(name: str, stage: list[tuple[str, str]]) -> list[str]:
    return [rest for each, rest in stage if each == name]


def is_ignored(path: str) -> bool:
    """By .dockerignore, whose patterns without **/ stand for the top of the tree."""
    parts = path.split("/")
    heads = ["/".join(parts[: i + 1]) for i in range(len(parts))]
    return any(
        fnmatch.fnmatchcase(head if "**/" not in pattern else head.split("/")[-1], pattern.removeprefix("**/"))
        for pattern in IGNORED
        for head in heads
    )


def packages(stage: list[tuple[str, str]]) -> set[str]:
    (run,) = [rest for rest in all_of("RUN", stage) if "apt-get install" in rest]
    assert "--no-install-recommends" in run
    assert run.startswith("apt-get update && "), "an old list names packages that are gone"
    assert "rm -rf /var/lib/apt/lists/*" in run, "the list would stay in the image"
    words = shlex.split(run.split("apt-get install")[1].split("&&")[0])
    assert words == [*[w for w in words if w.startswith("-")], *sorted(w for w in words if not w.startswith("-"))]
    return {word for word in words if not word.startswith("-")}


def test_every_script_that_is_run_exists_in_the_image_and_knows_its_options() -> None:
    build, _ = stages()
    calls = [call for run in all_of("RUN", build) for call in re.findall(r"bash (scripts/\S+)((?: --\S+)*)", run)]
    assert calls == [("scripts/setup.sh", " --no-dev")]
    for script, options in calls:
        assert not is_ignored(script)
        helped = subprocess.run(["bash", ROOT / script, "--help"], capture_output=True, text=True, check=True).stdout
        for option in options.split():
            assert re.search(rf"^\s+{re.escape('bash ' + script)} {option}\s", helped, re.MULTILINE)


def test_the_build_has_what_setup_asks_a_bare_system_for() -> None:
    build, _ = stages()
    setup = (ROOT / "scripts/setup.sh").read_text(encoding="utf-8")
    assert 'need_compiler "a C and C++ compiler" build-essential' in setup
    assert packages(build) == {"build-essential", "python3", "python3-venv"}


@pytest.mark.skipif(sys.platform != "linux", reason="ldd")
def test_the_image_has_the_libraries_that_the_engine_links_to() -> None:
    _, final = stages()
    code = "import importlib.util as u, pathlib; print(pathlib.Path(u.find_spec('llama_cpp').origin).parent / 'lib')"
    folder = Path(subprocess.check_output([sys.executable, "-c", code], text=True).strip())
    linked = subprocess.check_output(["ldd", *folder.glob("*.so")], text=True)
    system = {name for name, where in re.findall(r"(\S+) => (\S+)", linked) if str(folder) not in where}
    brought = {"libgomp.so.1": "libgomp1", "libstdc++.so.6": "libstdc++6"}
    libc = {"libc.so.6", "libm.so.6", "libgcc_s.so.1", "libpthread.so.0", "libdl.so.2", "librt.so.1"}
    assert system - libc == set(brought)
    assert packages(final) == {"python3", *brought.values()}


def test_what_is_copied_between_the_stages_lies_where_it_was_made() -> None:
    """A virtual environment has its own path written into it."""
    build, final = stages()
    (where,) = all_of("WORKDIR", build)
    assert all_of("COPY", build) == [". ."]
    assert all_of("COPY", final) == [f"--from=build {where} {where}"]
    assert dict(instructions())["FROM"] == "${BASE}"
    assert f"PATH={where}/.venv/bin:$PATH" in all_of("ENV", final)[0]


def test_what_setup_reads_is_not_ignored_and_nothing_of_this_machine_is_sent() -> None:
    for path in ("setup.cfg", "pyproject.toml", "constraints.txt", "README.md", "LICENSE", "scripts/lib.sh"):
        assert (ROOT / path).exists()
        assert not is_ignored(path)
    for path in ("edge/demo/model.safetensors", "edge/cli.py", "convert/cli.py", "benchmarks/cli.py"):
        assert not is_ignored(path)
    for path in (".git/config", ".venv/bin/python", "edge/__pycache__/cli.pyc", "models/a.gguf", ".mypy_cache/x"):
        assert is_ignored(path)


def test_nobody_runs_as_root() -> None:
    _, final = stages()
    names = [name for name, _ in final]
    (user,) = all_of("USER", final)
    assert int(user.partition(":")[0]) >= 1000, "a number: Kubernetes cannot see that a name is not root"
    assert names.index("USER") < names.index("ENTRYPOINT")
    assert not {"RUN", "COPY", "ADD"} & set(names[names.index("USER") :])
    assert f"useradd --uid {user} " in " ".join(all_of("RUN", final))


def test_it_starts_the_program_itself_so_that_signals_reach_it() -> None:
    _, final = stages()
    command = json.loads(all_of("ENTRYPOINT", final)[0])
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert command == ["edge", "serve"]
    assert setup["options.entry_points"]["console_scripts"].split()[0] == command[0]


class Health(http.server.BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status if self.path == "/health" else 404)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def test_the_health_check_tells_a_well_server_from_an_ill_one() -> None:
    _, final = stages()
    options, _, command = all_of("HEALTHCHECK", final)[0].partition(" CMD ")
    assert re.fullmatch(r"(--[\w-]+=\d+s? ?)+", options)
    _, *words = json.loads(command)
    with http.server.HTTPServer(("127.0.0.1", 0), Health) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        env = {**os.environ, "EDGE_SERVE_PORT": str(server.server_port)}

        def check() -> int:
            return subprocess.run([sys.executable, *words], env=env, stderr=subprocess.DEVNULL, timeout=60).returncode

        assert check() == 0
        Health.status = 503
        assert check() != 0
        server.shutdown()
    assert check() != 0


def test_the_settings_of_the_image_are_options_of_the_server() -> None:
    """Like every option they have a twin in the environment: EDGE_SERVE_ and the option's name."""
    serve = pytest.importorskip("edge.serve.cli").serve
    _, final = stages()
    names = re.findall(r"EDGE_SERVE_([A-Z_]+)=", all_of("ENV", final)[0])
    assert names
    assert {name.lower() for name in [*names, "PORT"]} <= {param.name for param in serve.params}
