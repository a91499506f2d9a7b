"""A child that loads the library, says in one JSON line what it can compute on and what that costs, and ends.

python -m edge.engine.devices
"""

import json
import os

from edge.board.memory import process_memory
from edge.engine import library


def main() -> None:
    before = _resident_bytes()
    devices = library.devices()  # loads the drivers, as every process does that loads a model
    driver_bytes = max(0, _resident_bytes() - before)
    answer = {"system_info": library.system_info(), "devices": devices, "driver_bytes": driver_bytes}
    print(json.dumps(answer))  # noqa: T201 - the answer


def _resident_bytes() -> int:
    memory = process_memory(os.getpid())
    return 0 if memory is None else memory.anonymous_bytes + memory.file_bytes


if __name__ == "__main__":
    main()
