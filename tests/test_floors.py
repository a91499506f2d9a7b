"""The floors of the house: which file may import which, and who may touch the native library.

Reads imports from the source with ast, also those inside functions and behind TYPE_CHECKING. Does not see modules
named by a string (importlib.import_module, python -m).
"""

import ast
import fnmatch
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("edge", "convert", "benchmarks")
# The table of docs/architecture.md, file by file.
FLOORS = {
    "benchmarks/emulator.py": 0,
    "benchmarks/options.py": 0,
    "benchmarks/schema.py": 0,
    "benchmarks/stats.py": 0,
    "benchmarks/workload.py": 0,
    "benchmarks/bandwidth.py": 1,
    "benchmarks/devices.py": 1,
    "benchmarks/process.py": 1,
    "benchmarks/record.py": 2,
    "benchmarks/compare.py": 3,
    "benchmarks/conditions.py": 3,
    "benchmarks/endpoint.py": 3,
    "benchmarks/fingerprint.py": 3,
    "benchmarks/history_bench.py": 3,
    "benchmarks/verdict.py": 3,
    "benchmarks/exchange.py": 4,
    "benchmarks/kernel.py": 4,
    "benchmarks/load.py": 4,
    "benchmarks/peers.py": 4,
    "benchmarks/plots.py": 4,
    "benchmarks/convert_bench.py": 5,
    "benchmarks/engine_bench.py": 5,
    "benchmarks/measure.py": 5,
    "benchmarks/page_bench.py": 5,
    "benchmarks/plan_bench.py": 5,
    "benchmarks/report.py": 5,
    "benchmarks/markdown.py": 6,
    "benchmarks/runner.py": 6,
    "benchmarks/shapes.py": 6,
    "benchmarks/choice.py": 7,
    "benchmarks/harness.py": 7,
    "benchmarks/overhead.py": 7,
    "benchmarks/page.py": 7,
    "benchmarks/roofline.py": 7,
    "benchmarks/accuracy.py": 8,
    "benchmarks/arm64_bench.py": 8,
    "benchmarks/baseline.py": 8,
    "benchmarks/quality_bench.py": 8,
    "benchmarks/serve_bench.py": 8,
    "benchmarks/cli.py": 9,
    "benchmarks/demo.py": 9,
    "benchmarks/passport.py": 9,
    "convert/divergence.py": 0,
    "convert/split.py": 0,
    "convert/dimensions.py": 1,
    "convert/folder.py": 1,
    "convert/journal.py": 1,
    "convert/output.py": 1,
    "convert/recipes.py": 1,
    "convert/records.py": 1,
    "convert/stops.py": 1,
    "convert/tasks.py": 1,
    "convert/texts.py": 1,
    "convert/tokenizer.py": 1,
    "convert/child.py": 2,
    "convert/importance.py": 2,
    "convert/quantize.py": 2,
    "convert/readback.py": 2,
    "convert/safetensors.py": 2,
    "convert/bar.py": 3,
    "convert/checkpoint.py": 3,
    "convert/chunks.py": 3,
    "convert/imatrix.py": 3,
    "convert/quality.py": 3,
    "convert/collect.py": 4,
    "convert/evaluate.py": 4,
    "convert/families.py": 4,
    "convert/manifest.py": 4,
    "convert/replies.py": 4,
    "convert/vocab.py": 4,
    "convert/blocks.py": 5,
    "convert/card.py": 5,
    "convert/plan.py": 5,
    "convert/remote.py": 5,
    "convert/passport.py": 6,
    "convert/pipeline.py": 6,
    "convert/push.py": 6,
    "convert/choose.py": 7,
    "convert/prove.py": 7,
    "convert/cli.py": 8,
    "edge/config.py": 0,
    "edge/errors.py": 0,
    "edge/lines.py": 0,
    "edge/messages.py": 0,
    "edge/schema.py": 0,
    "edge/text.py": 0,
    "edge/database.py": 1,
    "edge/documents.py": 1,
    "edge/rows.py": 1,
    "edge/transfer.py": 1,
    "edge/history.py": 2,
    "edge/tools.py": 2,
    "edge/chat.py": 3,
    "edge/recording.py": 3,
    "edge/terminal.py": 4,
    "edge/session.py": 5,
    "edge/unit.py": 5,
    "edge/history_cli.py": 6,
    "edge/cli.py": 8,
    "edge/service.py": 8,
    "edge/board/topology.py": 0,
    "edge/board/build.py": 1,
    "edge/board/library.py": 1,
    "edge/board/options.py": 1,
    "edge/board/probes.py": 1,
    "edge/board/sensors.py": 1,
    "edge/board/memory.py": 2,
    "edge/board/footprint.py": 3,
    "edge/board/tuned.py": 3,
    "edge/board/doctor.py": 4,
    "edge/board/plan.py": 4,
    "edge/board/tune.py": 5,
    "edge/board/cli.py": 8,
    "edge/demo/__init__.py": 7,
    "edge/engine/library.py": 0,
    "edge/engine/loops.py": 0,
    "edge/engine/pace.py": 0,
    "edge/engine/sandbox.py": 0,
    "edge/engine/door.py": 1,
    "edge/engine/process.py": 1,
    "edge/engine/protocol.py": 1,
    "edge/engine/sampler.py": 1,
    "edge/engine/watcher.py": 1,
    "edge/engine/client.py": 2,
    "edge/engine/grammar.py": 2,
    "edge/engine/llama.py": 2,
    "edge/engine/prefix.py": 2,
    "edge/engine/reasoning.py": 2,
    "edge/engine/devices.py": 3,
    "edge/engine/reply.py": 3,
    "edge/engine/slots.py": 3,
    "edge/engine/trial.py": 3,
    "edge/engine/scheduler.py": 4,
    "edge/engine/worker.py": 5,
    "edge/model/cursor.py": 0,
    "edge/model/renderer.py": 0,
    "edge/model/shards.py": 0,
    "edge/model/disk.py": 1,
    "edge/model/header.py": 1,
    "edge/model/names.py": 1,
    "edge/model/template.py": 1,
    "edge/model/vocabulary.py": 1,
    "edge/model/gguf.py": 2,
    "edge/model/hub.py": 2,
    "edge/model/cache.py": 3,
    "edge/model/facts.py": 3,
    "edge/model/bundle.py": 4,
    "edge/model/download.py": 4,
    "edge/model/fit.py": 5,
    "edge/model/pull.py": 6,
    "edge/model/cli.py": 7,
    "edge/serve/answers.py": 0,
    "edge/serve/ollama_answers.py": 0,
    "edge/serve/entry.py": 1,
    "edge/serve/keys.py": 1,
    "edge/serve/problems.py": 1,
    "edge/serve/stream.py": 1,
    "edge/serve/body.py": 2,
    "edge/serve/guard.py": 2,
    "edge/serve/condition.py": 3,
    "edge/serve/docs.py": 3,
    "edge/serve/wire.py": 3,
    "edge/serve/ask.py": 4,
    "edge/serve/metrics.py": 4,
    "edge/serve/page.py": 4,
    "edge/serve/replies.py": 4,
    "edge/serve/conversations.py": 5,
    "edge/serve/desk.py": 5,
    "edge/serve/openai_fields.py": 5,
    "edge/serve/admin.py": 6,
    "edge/serve/anthropic_fields.py": 6,
    "edge/serve/ollama_fields.py": 6,
    "edge/serve/openai.py": 6,
    "edge/serve/responses_fields.py": 6,
    "edge/serve/server.py": 6,
    "edge/serve/anthropic.py": 7,
    "edge/serve/ollama.py": 7,
    "edge/serve/responses.py": 7,
    "edge/serve/app.py": 8,
    "edge/serve/cli.py": 9,
}
NATIVE_DOORS = {f"edge/engine/{noun}.py" for noun in ("library", "llama", "sampler", "watcher")}
QUANTISER_DOOR = "convert/quantize.py"
MADE_HERE = ("demo_*.json", "demo_*.txt")  # data of our own, under our own licence


def modules(root: Path) -> dict[str, Path]:
    """Module name -> path under root, for every file of the project's packages."""
    found = {}
    for package in PACKAGES:
        for file in sorted((root / package).rglob("*.py")):
            path = file.relative_to(root)
            parts = path.with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def table() -> str:
    """The floors as docs/architecture.md shows them: a row per floor, its files folder by folder."""
    rows = ["| floor | files |", "|---|---|"]
    for level in sorted(set(FLOORS.values())):
        folders: dict[str, list[str]] = {}
        for name in (name for name, there in FLOORS.items() if there == level):
            folders.setdefault(name.rpartition("/")[0], []).append(name.rpartition("/")[2].removesuffix(".py"))
        cells = (f"`{folder}/` {', '.join(sorted(names))}" for folder, names in sorted(folders.items()))
        rows.append(f"| {level} | {' · '.join(cells)} |")
    return "\n".join(rows) + "\n"


def page_with_table(page: str) -> str:
    return re.sub(r"^\| floor \|.*?\n(?!\|)", lambda _: table(), page, flags=re.M | re.S)


def floor(path: Path) -> int | None:
    """The floor of a file; a package's __init__.py stands at the bottom, because importing anything inside runs it."""
    return FLOORS.get(path.as_posix(), 0 if path.name == "__init__.py" else None)


def imported_names(tree: ast.AST, path: Path) -> Iterator[str]:
    """Every dotted name that the file may load. `from a import b` gives a and a.b: b may be a module or a value."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = path.parent.parts[: len(path.parent.parts) - (node.level - 1)]
                base = ".".join([*package, *filter(None, [node.module])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def opens_ggml(tree: ast.AST) -> bool:
    """Does the file reach for ggml's symbols through ctypes? Comments and docstrings may speak of it."""
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    words = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            words.append(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            words.append(node.value)
    uses_ctypes = any(name.split(".")[0] == "ctypes" for name in imported_names(tree, Path("x.py")))
    return uses_ctypes and any(re.search(r"\b(lib)?ggml(_|$|[-.])", word) for word in words)


def violations(root: Path) -> list[str]:
    """Each broken rule as one line; empty when the house stands."""
    known = modules(root)
    found = []
    for module, path in known.items():
        here = floor(path)
        if here is None:
            found.append(f"{path.as_posix()} has no floor; give it one in tests/test_floors.py")
            continue
        tree = ast.parse((root / path).read_text(encoding="utf-8"))
        names = set(imported_names(tree, path))
        for target in sorted(names & known.keys() - {module}):
            there = floor(known[target])
            if there is not None and there >= here and not is_own_package(target, path):
                found.append(f"{path.as_posix()} ({here}) -> {known[target].as_posix()} ({there})")
        if any(name.split(".")[0] == "llama_cpp" for name in names) and path.as_posix() not in NATIVE_DOORS:
            found.append(f"{path.as_posix()} imports llama_cpp; only {', '.join(sorted(NATIVE_DOORS))} may")
        if opens_ggml(tree) and path.as_posix() not in {*NATIVE_DOORS, QUANTISER_DOOR}:
            found.append(f"{path.as_posix()} opens ggml through ctypes; only {QUANTISER_DOOR} may")
    return found


def is_own_package(target: str, path: Path) -> bool:
    """A floor-0 file may take from the package it lies in (`from edge import __version__`): that ran before it."""
    return target.split(".") == list(path.parts[: len(target.split("."))])


def plant(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return root


def test_the_page_shows_these_floors():
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    assert page == page_with_table(page), "write the table: python -m tests.test_floors"


def test_imports_go_down_only():
    assert not violations(ROOT), "\n".join(["", *violations(ROOT)])


def test_an_arrow_upwards_is_reported(tmp_path):
    plant(tmp_path, {"edge/errors.py": "def late():\n    from edge.engine import llama\n", "edge/engine/llama.py": ""})
    assert violations(tmp_path) == ["edge/errors.py (0) -> edge/engine/llama.py (2)"]


def test_an_arrow_along_the_floor_is_reported(tmp_path):
    plant(tmp_path, {"edge/engine/llama.py": "from . import reasoning\n", "edge/engine/reasoning.py": ""})
    assert violations(tmp_path) == ["edge/engine/llama.py (2) -> edge/engine/reasoning.py (2)"]


def test_an_arrow_for_types_only_is_reported(tmp_path):
    source = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import edge.cli\n"
    plant(tmp_path, {"convert/cli.py": source, "edge/cli.py": ""})
    assert violations(tmp_path) == ["convert/cli.py (8) -> edge/cli.py (8)"]


def test_an_arrow_downwards_is_fine(tmp_path):
    plant(tmp_path, {"edge/cli.py": "from edge.errors import EdgeError\n", "edge/errors.py": "import json\n"})
    assert violations(tmp_path) == []


def test_a_package_imports_nothing_of_the_project(tmp_path):
    plant(tmp_path, {"edge/__init__.py": "from edge.errors import EdgeError\n", "edge/errors.py": ""})
    assert violations(tmp_path) == ["edge/__init__.py (0) -> edge/errors.py (0)"]


def test_a_file_without_a_floor_is_reported(tmp_path):
    plant(tmp_path, {"edge/attic.py": ""})
    assert violations(tmp_path) == ["edge/attic.py has no floor; give it one in tests/test_floors.py"]


def test_a_second_importer_of_llama_cpp_is_reported(tmp_path):
    plant(tmp_path, {"benchmarks/measure.py": "def f():\n    from llama_cpp import llama_cpp\n"})
    (found,) = violations(tmp_path)
    assert found.startswith("benchmarks/measure.py imports llama_cpp; only edge/engine/library.py, ")


def test_a_second_quantiser_is_reported(tmp_path):
    reaches = 'import ctypes\nlib = ctypes.CDLL("libggml-base.so")\nlib.ggml_quantize_chunk()\n'
    speaks = '"""Not ggml_quantize_chunk."""\nimport ctypes\nctypes.CDLL(None).prctl(1)\n'
    plant(tmp_path, {"convert/recipes.py": reaches, "edge/board/topology.py": speaks})
    assert violations(tmp_path) == [f"convert/recipes.py opens ggml through ctypes; only {QUANTISER_DOOR} may"]


def test_the_doors_themselves_are_open(tmp_path):
    reaches = 'import ctypes\nctypes.CDLL("libggml-base.so").ggml_quantize_chunk()\n'
    plant(tmp_path, {**dict.fromkeys(NATIVE_DOORS, "import llama_cpp\n"), QUANTISER_DOOR: reaches})
    assert violations(tmp_path) == []


def test_every_data_file_has_a_known_licence():
    """Foreign data stands in the table of its folder's LICENSE-data.md, and each name there is a file."""
    page = ROOT / "tests/data/LICENSE-data.md"
    table = "".join(line for line in page.read_text(encoding="utf-8").splitlines(True) if line.startswith("|"))
    named = {name for row in table.splitlines() for name in re.findall(r"`([^`]+)`", row.split("|")[1])}
    files = {file.name for file in page.parent.iterdir() if file != page}
    foreign = {name for name in files if not any(fnmatch.fnmatch(name, ours) for ours in MADE_HERE)}
    assert foreign == named, f"make {page.name} name exactly these: {', '.join(sorted(foreign))}"


if __name__ == "__main__":
    page = ROOT / "docs/architecture.md"
    page.write_text(page_with_table(page.read_text(encoding="utf-8")), encoding="utf-8")
