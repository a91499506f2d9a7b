"""Thousands of damaged checkpoints: each is converted or refused with a sentence. Nothing else, and nothing left."""

import copy
import json
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from convert.pipeline import dry_run
from edge.errors import EdgeError
from tests.convert import checkpoints
from tests.convert.checkpoints import Shape

TINY = Shape(embd=32, ff=32, head=2, head_kv=1, layer=1)
STRANGE: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, 10**40, 0.5, 1e308, "", "x", "\ud800", "\0", "../../x", "é" * 500,
    [], [[]], {}, [None], {"a": None}, [0] * 100, {"type": "Sequence"}, ["\udfff", "a"], {"content": 7}, "NaN",
)  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.write(tmp_path_factory.mktemp("hostile") / "whole", TINY, n_shards=2)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON value, big arrays and objects thinned out."""
    found = [path] if path else []
    items: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    for key, item in items[:40]:
        found += places(item, (*path, key))
    return found


def changed(value: Any, rng: random.Random) -> Any:
    """The same JSON with one to three places holding something strange, or gone."""
    value = json.loads(json.dumps(value))
    for _ in range(rng.randint(1, 3)):
        *parents, last = rng.choice(places(value))
        home = value
        for key in parents:
            if not isinstance(home, dict | list) or (isinstance(home, dict) and key not in home):
                break
            home = home[key]
        else:
            if isinstance(home, dict) and rng.random() < 0.3:
                home.pop(last, None)
            elif isinstance(home, dict) or (isinstance(home, list) and last < len(home)):
                home[last] = copy.deepcopy(rng.choice(STRANGE))
    return value


def outcome(folder: Path) -> str:
    """What became of it. Anything but an EdgeError goes up and fails the test."""
    try:
        dry_run(folder, ["Q4_K_M"])
    except EdgeError as error:
        text = str(error)
        assert len(text) < 1000
        assert "; " in text
        return "refused"
    return "planned"


def damage_json(name: str) -> Callable[[Path, random.Random], None]:
    def damage(folder: Path, rng: random.Random) -> None:
        path = folder / name
        path.write_text(json.dumps(changed(json.loads(path.read_text()), rng)))

    return damage


def damage_header(folder: Path, rng: random.Random) -> None:
    path = rng.choice(sorted(folder.glob("*.safetensors")))
    raw = path.read_bytes()
    (n_bytes,) = struct.unpack("<Q", raw[:8])
    header = changed(json.loads(raw[8 : 8 + n_bytes]), rng)
    path.write_bytes(checkpoints.raw_safetensors(header, raw[8 + n_bytes :]))


def damage_bytes(folder: Path, rng: random.Random) -> None:
    """Flip, cut or repeat bytes anywhere in the first 4 kB of any file."""
    path = rng.choice(sorted(path for path in folder.iterdir() if path.is_file()))
    raw = bytearray(path.read_bytes())
    for _ in range(rng.randint(1, 8)):
        place = rng.randrange(min(4096, len(raw)))
        match rng.randrange(4):
            case 0:
                raw[place] ^= 1 << rng.randrange(8)
            case 1:
                raw[place] = rng.randrange(256)
            case 2:
                del raw[place : place + rng.randrange(64)]
            case 3:
                raw[place:place] = raw[: rng.randrange(64)]
        if not raw:
            break
    path.write_bytes(raw)


DAMAGES = {
    "config": damage_json("config.json"),
    "tokenizer": damage_json("tokenizer.json"),
    "tokenizer config": damage_json("tokenizer_config.json"),
    "generation config": damage_json("generation_config.json"),
    "index": damage_json("model.safetensors.index.json"),
    "header": damage_header,
    "bytes": damage_bytes,
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_refused_or_harmless(whole: Path, tmp_path: Path, name: str) -> None:
    rng = random.Random(f"damage {name}")
    seen = []
    for i in range(150):
        folder = tmp_path / str(i)
        shutil.copytree(whole, folder)
        DAMAGES[name](folder, rng)
        seen.append(outcome(folder))
        shutil.rmtree(folder)
    assert seen.count("refused") > 5


def test_the_undamaged_is_planned(whole: Path) -> None:
    assert outcome(whole) == "planned"
