"""Boards to run things on. Without an emulated machine the tests of this folder are left out, and say so."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.arm64.board import Board, make_board

MakeBoard = Callable[[str, str, str], Board]


@pytest.fixture(scope="session")
def make(tmp_path_factory: pytest.TempPathFactory) -> MakeBoard:
    """A board by its recorded name, its core and the target of its llama.cpp; the same one each time."""
    machine = Path(os.environ.get("EDGE_ARM64", ""))
    if not (machine / "root").is_dir():
        pytest.skip("needs an emulated machine: bash scripts/test-arm64.sh")
    made: dict[tuple[str, str, str], Board] = {}

    def make_once(name: str, cpu: str, target: str) -> Board:
        key = (name, cpu, target)
        if key not in made:
            made[key] = make_board(machine, *key, tmp_path_factory.mktemp(name))
        return made[key]

    return make_once


@pytest.fixture(scope="session")
def pi5(make: MakeBoard) -> Board:
    return make("raspberry-pi-5", "cortex-a76", "armv8.2-dotprod")


@pytest.fixture(scope="session")
def pi4(make: MakeBoard) -> Board:
    return make("raspberry-pi-4", "cortex-a72", "armv8.0")


@pytest.fixture(scope="session")
def pi4_with_the_pi5_build(make: MakeBoard) -> Board:
    return make("raspberry-pi-4", "cortex-a72", "armv8.2-dotprod")


@pytest.fixture(scope="session")
def pi5_with_the_pi4_build(make: MakeBoard) -> Board:
    return make("raspberry-pi-5", "cortex-a76", "armv8.0")
