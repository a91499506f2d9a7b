"""The OpenAPI document and the server agree: schemathesis tries what the document allows, and what it does not."""

import subprocess
import sys
from pathlib import Path

from tests.serve.conftest import Server

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
PATHS = ("/v1/chat/completions", "/v1/models", "/tokenize", "/health")


def test_no_answer_is_undocumented_and_none_is_our_fault(server: Server) -> None:
    chosen = [part for path in PATHS for part in ("--include-path", path)]
    command = Path(sys.executable).with_name("schemathesis")
    done = subprocess.run(
        [str(command), "run", f"{server.url}/openapi.json", "-n", "3", "--phases", "coverage,fuzzing", "--seed", "1",
         "--checks", CHECKS, *chosen],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    assert f"Tested: {len(PATHS)}" in done.stdout
