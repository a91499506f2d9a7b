"""A child that loads the library, says in one JSON line what it can compute on, and ends.

python -m edge.engine.devices
"""

import json

from edge.engine import llama


def main() -> None:
    print(json.dumps({"system_info": llama.system_info(), "devices": llama.devices()}))  # noqa: T201 - the answer


if __name__ == "__main__":
    main()
