"""A child that loads the library, says in one JSON line what it can compute on, and ends.

python -m edge.engine.devices
"""

import json

from edge.engine import library


def main() -> None:
    print(json.dumps({"system_info": library.system_info(), "devices": library.devices()}))  # noqa: T201 - the answer


if __name__ == "__main__":
    main()
