"""The shell scripts, on machines that lack something: a stand-in Python whose venv and pip only write down their calls.

Nothing here compiles, downloads or touches .venv. Not covered: what pip, CMake and a terminal do with it in earnest.
"""

import configparser
import os
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
SETUP = ROOT / "scripts/setup.sh"
BUILD = ROOT / "scripts/build-llama.sh"
TOOLS = (
    "awk basename bash cat cp cut date df dirname env find flock getconf grep gzip head ldd ls mkdir mv nproc readlink "
    "rm sed sh sleep sort stty sync tail tar touch tr uname wc"
)

PYTHON = """#!/bin/sh
real={real}
printf '%s\\n' "$*" >> "$CALLS"
after() {{ found=; for word; do [ "$found" ] && echo "$word" && return; [ "$word" = "$option" ] && found=1; done; }}
case "$*" in
-I*) exit 0 ;; # everything loads
"-m venv"*)
  for folder; do :; done
  mkdir -p "$folder/bin" "$folder/lib/python$("$real" -c 'import sys; print("%d.%d" % sys.version_info[:2])')"
  touch "$folder/pyvenv.cfg" && cp "$0" "$folder/bin/python" && exit ;;
"-m pip"*" download "*)
  option=--dest; folder=$(after "$@"); mkdir -p "$folder/llama_cpp_python"
  cd "$folder" && tar -czf llama_cpp_python.tar.gz llama_cpp_python && rm -r llama_cpp_python; exit ;;
"-m pip"*" wheel "*)
  [ -z "$BUILD_SAYS" ] || {{ echo "$BUILD_SAYS"; exit 1; }}
  [ -z "$BUILD_HANGS" ] || {{ exec 3> "$BUILD_HANGS"; echo started >&3; sleep 600; }}
  option=--wheel-dir; folder=$(after "$@"); mkdir -p "$folder"
  exec "$real" -m zipfile -c "$folder/llama_cpp_python.whl" "$0" ;;
"-m pip"*) exit 0 ;;
esac
{last}
"""


@dataclass
class Machine:
    """A folder of programs for PATH, an empty home, and what was called on the way."""

    folder: Path

    def __post_init__(self) -> None:
        self.programs = self.folder / "bin"
        self.venv = self.folder / "the venv"  # a space, because people have them
        self.cache = self.folder / "the cache"
        self.calls_file = self.folder / "calls"
        self.programs.mkdir()
        for tool in TOOLS.split():
            if found := shutil.which(tool):
                (self.programs / tool).symlink_to(found)
        self.program("cc", "echo 'cc (stand-in) 1.0'")
        self.program("c++", "echo 'c++ (stand-in) 1.0'")
        self.python('exec "$real" "$@"')
        self.room(9999)

    def program(self, name: str, script: str) -> None:
        (self.programs / name).unlink(missing_ok=True)
        (self.programs / name).write_text(script if script.startswith("#!") else f"#!/bin/sh\n{script}\n")
        (self.programs / name).chmod(0o755)

    def python(self, last: str) -> None:
        """The stand-in; last: what becomes of all calls but those of venv and pip."""
        self.program("python3", PYTHON.format(real=shlex.quote(sys.executable), last=last))

    def python_with(self, statement: str) -> None:
        self.python(f"""[ "$1" = -c ] && exec "$real" -c "import sys; {statement}; exec(sys.argv[1])" "$2" """)

    def room(self, n_mb: int) -> None:
        self.program("df", f"echo header; echo disk 1 1 {n_mb * 1024} 1% /")

    def start(self, *arguments: str, **env: str) -> "subprocess.Popen[str]":
        return self.run(SETUP, arguments, env)

    def run(self, script: Path, arguments: Sequence[str], env: Mapping[str, str]) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            ["bash", str(script), *arguments],
            env={
                "PATH": str(self.programs),
                "HOME": str(self.folder),
                "EDGE_VENV": str(self.venv),
                "EDGE_CACHE": str(self.cache),
                "CALLS": str(self.calls_file),
                **env,
            },
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def setup(self, *arguments: str, expect: int = 0, **env: str) -> list[str]:
        """Run setup.sh; give its lines on stderr."""
        process = self.start(*arguments, **env)
        out, err = process.communicate(timeout=120)
        assert process.returncode == expect, err
        assert out == ""
        return err.splitlines()

    def pc(self) -> None:
        """Make it an x86-64 PC with Linux and a cross-compiler for arm64."""
        self.program("uname", "case $1 in -s) echo Linux ;; -m) echo x86_64 ;; *) echo Linux x86_64 ;; esac")
        for name in ("gcc", "g++"):
            says = "case $1 in -dumpmachine) echo aarch64-linux-gnu ;; *) echo 'gcc (stand-in) 1.0' ;; esac"
            self.program(f"aarch64-linux-gnu-{name}", says)

    def build(self, *arguments: str, expect: int = 0, **env: str) -> tuple[list[str], list[str]]:
        """Run build-llama.sh; give the paths it printed, and its lines on stderr."""
        process = self.run(BUILD, arguments, env)
        out, err = process.communicate(timeout=120)
        assert process.returncode == expect, err
        return out.splitlines(), err.splitlines()

    def calls(self) -> list[str]:
        """What Python was asked to do since the last look."""
        calls = self.calls_file.read_text().splitlines() if self.calls_file.exists() else []
        self.calls_file.unlink(missing_ok=True)
        return calls

    def pip_calls(self) -> list[str]:
        return [call for call in self.calls() if call.startswith("-m pip")]

    def wheels(self) -> list[Path]:
        return sorted(self.cache.glob("wheels/*/*.whl"))


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def assert_refused(machine: Machine, *words: str, **env: str) -> None:
    """Exit 1 with one sentence that has these words, and nothing made."""
    lines = machine.setup(expect=1, **env)
    assert len(lines) == 1, lines
    for word in words:
        assert word in lines[0]
    assert not machine.venv.exists()
    assert not machine.cache.exists()
    assert not machine.pip_calls()


def test_without_compiler_the_apt_line_is_named(machine):
    (machine.programs / "c++").unlink()
    assert_refused(machine, "C and C++ compiler", "sudo apt-get install build-essential")


def test_old_python_is_named_with_its_version(machine):
    machine.python_with("sys.version_info = (3, 9, 2, 'final', 0)")
    assert_refused(machine, "python3 is 3.9", "sudo apt-get install python3.11 python3.11-venv")


def test_no_python_at_all_is_named(machine):
    (machine.programs / "python3").unlink()
    assert_refused(machine, "python3 is not there", "sudo apt-get install python3.11")


def test_python_without_venv_is_named(machine):
    machine.python_with("sys.modules['ensurepip'] = None")
    assert_refused(machine, "venv", "sudo apt-get install python3-venv")


def test_all_that_is_missing_is_named_at_once(machine):
    (machine.programs / "cc").unlink()
    machine.python_with("sys.modules['ensurepip'] = None")
    assert_refused(machine, "sudo apt-get install python3-venv build-essential")


def test_a_newer_python_beside_an_old_one_is_found(machine):
    machine.program("python3.12", (machine.programs / "python3").read_text())
    machine.python_with("sys.version_info = (3, 9, 2, 'final', 0)")
    machine.setup()
    assert machine.wheels()


def test_a_folder_that_is_no_environment_is_left_alone(machine):
    machine.venv.mkdir()
    (machine.venv / "letters.txt").write_text("dear")
    (line,) = machine.setup(expect=1)
    assert "is not a Python environment; move it away or set EDGE_VENV" in line
    assert [file.name for file in machine.venv.iterdir()] == ["letters.txt"]


def test_a_full_disk_is_named_before_anything_is_fetched(machine):
    machine.room(100)
    (line,) = machine.setup(expect=1)
    assert "100 MB free" in line
    assert not machine.pip_calls()


def test_second_run_does_nothing(machine):
    assert machine.setup()[-1].startswith("ready in ")
    assert machine.pip_calls()
    assert machine.setup() == [f"nothing to do: {machine.venv} is up to date"]
    assert not machine.pip_calls()


def test_an_environment_that_does_not_load_is_mended(machine):
    machine.setup()
    python = machine.venv / "bin/python"
    fails_once = """-I*) [ -e "$CALLS.once" ] || { touch "$CALLS.once"; exit 1; }; exit 0"""
    python.write_text(python.read_text().replace("-I*) exit 0", fails_once))
    assert machine.setup()[-1].startswith("ready in ")


def test_environment_with_dev_serves_without_dev_but_not_the_other_way(machine):
    machine.setup("--no-dev")
    assert not any(".[dev]" in call for call in machine.pip_calls())
    machine.setup()
    assert any(".[dev]" in call for call in machine.pip_calls())
    assert machine.setup("--no-dev") == [f"nothing to do: {machine.venv} is up to date"]


def test_a_wheel_is_built_once_for_each_way_of_building(machine):
    machine.setup()
    assert any(" wheel " in call and "--no-cache-dir" in call for call in machine.pip_calls())
    machine.setup(EDGE_VENV=str(machine.folder / "second"))
    assert not any(" wheel " in call for call in machine.pip_calls())
    machine.setup(CMAKE_ARGS="-DGGML_CUDA=ON")
    assert any(" wheel " in call for call in machine.pip_calls())
    machine.program("c++", "echo 'c++ (stand-in) 2.0'")
    machine.setup(EDGE_VENV=str(machine.folder / "third"))
    assert any(" wheel " in call for call in machine.pip_calls())
    assert len(machine.wheels()) == 3


def test_another_python_takes_the_wheel_that_is_there(machine):
    machine.setup()
    machine.pip_calls()
    other = "import sys; sys.implementation.cache_tag = 'cpython-399'; exec(sys.argv.pop(1))"
    machine.python(f"""[ "$1" != -c ] || {{ shift; exec "$real" -c "{other}" "$@"; }}; exec "$real" "$@" """)
    machine.setup(EDGE_VENV=str(machine.folder / "second"))
    assert not any(" wheel " in call for call in machine.pip_calls())
    assert len(machine.wheels()) == 1


def test_the_wheel_that_is_built_is_one_for_every_python():
    """Its tag says so; a wheel of one Python would need that Python's name in the key of the cache."""
    tags = distribution("llama-cpp-python").read_text("WHEEL") or ""
    assert re.search(r"^Tag: py3-none-\w+$", tags, re.MULTILINE), tags


def test_a_damaged_wheel_is_built_again(machine):
    machine.setup()
    (wheel,) = machine.wheels()
    whole = wheel.read_bytes()
    wheel.write_bytes(whole[: len(whole) // 2])
    lines = machine.setup(EDGE_VENV=str(machine.folder / "second"))
    assert any("is damaged; building it anew" in line for line in lines)
    assert machine.wheels() == [wheel]
    assert len(wheel.read_bytes()) > len(whole) // 2


def test_with_a_wheel_from_elsewhere_nothing_is_compiled(machine):
    (machine.programs / "c++").unlink()
    (machine.folder / "a.whl").write_bytes(b"PK\5\6" + bytes(18))  # an empty archive
    machine.setup("--wheel", "a.whl")
    calls = machine.pip_calls()
    assert any("--force-reinstall" in call and call.endswith("a.whl") for call in calls)
    assert not any(" wheel " in call for call in calls)
    assert "nothing to do" in machine.setup("--wheel", "a.whl")[0]
    (machine.folder / "a.whl").write_bytes(b"PK")
    assert "damaged" in machine.setup("--wheel", "a.whl", expect=1, EDGE_VENV=str(machine.folder / "b"))[-1]
    assert "b.whl is not there" in machine.setup("--wheel=b.whl", expect=1)[-1]


@pytest.mark.parametrize(
    ("says", "next_step"),
    [
        ("c++: fatal error: Killed signal terminated program cc1plus", "CMAKE_BUILD_PARALLEL_LEVEL=1"),
        ("error: No space left on device", "make room"),
        ("ERROR: Could not find a version that satisfies the requirement ninja", "check the network"),
        ("CMake Error at CMakeLists.txt:1: no CUDA", "check CMAKE_ARGS"),
        ("error: something new", "read the log"),
    ],
)
def test_a_failed_build_leaves_no_wheel_and_names_the_next_step(machine, says, next_step):
    lines = machine.setup(expect=1, BUILD_SAYS=f"[1/9] c++ -Werror=format\n{says}\nbye")
    assert says in lines
    assert not any("-Werror" in line for line in lines)
    assert lines[-1].startswith("setup.sh: building llama.cpp failed; ")
    assert next_step in lines[-1]
    assert "then run this again" in lines[-1]
    assert machine.wheels() == []
    assert "bye" in (machine.venv / "setup.log").read_text()
    machine.setup()
    assert len(machine.wheels()) == 1


def test_a_stopped_build_ends_with_all_its_children_and_goes_on_next_time(machine):
    alive = machine.folder / "alive"  # whatever the build started holds this open
    os.mkfifo(alive)
    reader = os.open(alive, os.O_RDONLY | os.O_NONBLOCK)
    process = machine.start(BUILD_HANGS=str(alive))
    assert wait_for(reader) == b"started\n"
    process.send_signal(signal.SIGTERM)
    assert wait_for(reader) == b""
    os.close(reader)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.endswith("setup.sh: stopped; run it again to go on from here\n")
    assert machine.wheels() == []
    machine.pip_calls()
    machine.setup()
    assert len(machine.wheels()) == 1
    assert not any(" download " in call for call in machine.pip_calls())
    assert not list(machine.cache.glob("wheels/.building-*"))


def wait_for(reader: int, n_seconds: float = 60) -> bytes:
    """The next bytes of a pipe; empty when its last writer is gone."""
    ready, _, _ = select.select([reader], [], [], n_seconds)
    assert ready, "nothing came"
    return os.read(reader, 100)


def test_a_board_s_wheel_is_built_on_a_pc_once(machine):
    machine.pc()
    usb = machine.folder / "usb stick"
    (path,), _ = machine.build("--target", "pi5", "--out", str(usb))
    assert Path(path).is_file()
    assert Path(path).parent == usb
    assert any(" wheel " in call and "--no-cache-dir" in call for call in machine.pip_calls())
    machine.build("--target=rk3588", "--out", str(usb))  # another name for the same instructions
    assert not any(" wheel " in call for call in machine.pip_calls())
    machine.build("--target", "pi4", "--out", str(usb))
    machine.build("--target", "pi4", "--out", str(usb), CMAKE_ARGS="-DGGML_OPENMP=OFF")
    assert len(machine.wheels()) == 3
    flags = [(wheel.parent / "inputs.txt").read_text() for wheel in machine.wheels()]
    assert all("-DCMAKE_SYSTEM_PROCESSOR=aarch64" in text and "-DGGML_RPC=ON" in text for text in flags)
    assert not list(machine.cache.glob("wheels/.building-*"))


def test_several_boards_share_one_source_and_one_set_of_objects(machine):
    machine.pc()
    out = machine.folder / "out"
    paths, _ = machine.build("--target", "pi4", "--target", "pi5", "--out", str(out))
    assert [Path(path).parent for path in paths] == [out / "pi4", out / "pi5"]
    calls = machine.pip_calls()
    assert sum(" download " in call for call in calls) == 1
    folders = {word for call in calls if " wheel " in call for word in call.split() if word.startswith("build-dir=")}
    assert len(folders) == 1


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "name a --target: native, pi4, pi5"),
        (["--target"], 2, "--target needs a value"),
        (["--target", "pi6"], 2, "there is no target pi6; choose one of: native, pi4, pi5"),
        (["--frob"], 2, "unknown option --frob"),
        (["--target", "pi5"], 1, "sudo apt-get install g++-aarch64-linux-gnu"),
        (["--target", "metal"], 1, "for a Mac with Apple silicon"),
        (["--target", "cuda"], 1, "target cuda needs "),
        (["--target", "vulkan"], 1, "glslc"),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_sentence(machine, arguments, code, words):
    machine.pc()
    (machine.programs / "aarch64-linux-gnu-g++").unlink()
    machine.program("c++", "case $1 in -E) exit 1 ;; *) echo 'c++ (stand-in) 1.0' ;; esac")
    out, lines = machine.build(*arguments, expect=code)
    assert out == []
    assert words in lines[-1]
    assert not machine.wheels()


def test_a_compiler_for_another_machine_is_refused(machine):
    machine.pc()
    machine.program("odd-cc", "echo riscv64-linux-gnu")
    _, lines = machine.build("--target", "pi5", expect=1, CC="odd-cc")
    assert "CC is odd-cc, which does not compile for aarch64" in lines[-1]


def test_what_was_built_for_a_board_is_not_installed_on_the_pc(machine):
    machine.pc()
    _, lines = machine.build("--target", "pi5", "--install", "--out", str(machine.folder), expect=1)
    assert "copy " in lines[-1]
    assert "pip install --force-reinstall --no-deps" in lines[-1]


@pytest.mark.parametrize("name", ["setup", "check", "test", "demo", "build-llama", "test-arm64", "test-vulkan"])
def test_every_script_explains_itself(name):
    result = subprocess.run(
        ["bash", f"scripts/{name}.sh", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert f"bash scripts/{name}.sh" in result.stdout
    assert result.stderr == ""


@pytest.mark.parametrize("name", ["setup", "check"])
def test_an_unknown_option_is_refused_by_name(name):
    result = subprocess.run(
        ["bash", f"scripts/{name}.sh", "--frob"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert "--frob" in result.stderr


def test_ci_runs_the_test_script():
    run = ROOT / ".ci/run"
    assert os.access(run, os.X_OK)
    assert "scripts/test.sh" in run.read_text()
    assert os.access(ROOT / "scripts/test.sh", os.X_OK)


def test_constraints_hold_one_exact_version_of_all_that_is_named():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    listed = [config["options"]["install_requires"], *config["options.extras_require"].values()]
    lines = [
        line for text in listed for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")
    ]
    wanted = [Requirement(line) for line in lines]
    text = (ROOT / "constraints.txt").read_text()
    pins = [Requirement(line) for line in text.splitlines() if line and not line.startswith("#")]
    for version in ("3.10", "3.11", "3.14"):
        here = [pin for pin in pins if pin.marker is None or pin.marker.evaluate({"python_version": version})]
        exact = {pin.name: str(pin.specifier).removeprefix("==") for pin in here}
        assert len(exact) == len(here), "a package has two versions"
        for requirement in wanted:
            if requirement.marker is not None and not requirement.marker.evaluate({"python_version": version}):
                continue
            assert requirement.specifier.contains(exact[requirement.name]), requirement
