"""Starting, failing, stopping: what the server says and does when things end."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest

from tests.serve.conftest import QUESTION, Server, eventually, post_text, read_all, serving
from tests.test_cli import refusal


def engine_pid(server: Server) -> int:
    children = psutil.Process(server.process.pid).children(recursive=True)
    (pid,) = [child.pid for child in children if "edge.engine.worker" in child.cmdline()]
    return pid


def endless(server: Server) -> bytes:
    return post_text("/v1/chat/completions", json.dumps(server.endless()).encode(), "Connection: close")


# ---- stopping


def test_a_running_reply_is_finished_within_the_grace_time(demo_model: Path, tmp_path: Path) -> None:
    with serving(tmp_path, "--grace", "20", model=demo_model) as found:
        body = json.dumps({"messages": QUESTION, "temperature": 0, "stream": True, "max_tokens": 500}).encode()
        with found.raw(post_text("/v1/chat/completions", body)) as connection, found.raw() as late:
            first = connection.recv(100)
            found.process.send_signal(signal.SIGTERM)
            rest = first + read_all(connection)
            assert b"data: [DONE]" in rest
            late.settimeout(10)
        found.process.wait(10)
        assert found.process.returncode == 0


def test_after_sigterm_nothing_new_is_taken_and_what_runs_is_told(demo_model: Path, tmp_path: Path) -> None:
    with serving(tmp_path, "--grace", "1.5", "--ctx", "32768", model=demo_model) as found:
        with found.raw(endless(found)) as running, found.raw() as late:
            running.recv(100)
            started_s = time.monotonic()
            found.process.send_signal(signal.SIGTERM)
            eventually(lambda: b'"stopping"' in health(found))
            late.sendall(post_text("/v1/chat/completions", json.dumps({"messages": QUESTION}).encode()))
            refused = late.recv(4096)
            assert b" 503 " in refused.splitlines()[0]
            assert b"retry-after" in refused.lower()
            rest = read_all(running)
        last = [line for line in rest.splitlines() if line.startswith(b"data: ")][-1]
        assert json.loads(last[6:])["error"]["code"] == "stopping"
        assert b"[DONE]" not in rest
        found.process.wait(15)
        assert time.monotonic() - started_s < 15
        assert found.process.returncode == 0


def health(server: Server) -> bytes:
    return server.exchange(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")


def test_a_second_signal_ends_it_at_once(demo_model: Path, tmp_path: Path) -> None:
    options = ("--grace", "300", "--ctx", "32768")
    with serving(tmp_path, *options, model=demo_model) as found, found.raw(endless(found)) as running:
        running.recv(100)
        found.process.send_signal(signal.SIGINT)
        eventually(lambda: b'"stopping"' in health(found))
        found.process.send_signal(signal.SIGINT)
        found.process.wait(15)


def test_nothing_is_left_behind(demo_model: Path, tmp_path: Path) -> None:
    with serving(tmp_path, model=demo_model) as found:
        found.chat(max_tokens=3)
        family = psutil.Process(found.process.pid).children(recursive=True)
        assert len(family) >= 2  # the engine and the template's process
        found.process.kill()
        found.process.wait()
        eventually(lambda: not any(child.is_running() and child.status() != "zombie" for child in family))


# ---- the engine dies


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSEGV])
def test_the_engine_dies_and_the_server_does_not(demo_model: Path, tmp_path: Path, how: signal.Signals) -> None:
    with serving(tmp_path, "--slots", "1", "--ctx", "32768", model=demo_model) as found:
        queued: list[int] = []
        with found.raw(endless(found)) as running:
            running.recv(100)
            waiting = threading.Thread(target=lambda: queued.append(found.chat(max_tokens=5).status_code))
            waiting.start()
            eventually(lambda: found.metric("edge_requests_waiting") == 1)
            os.kill(engine_pid(found), how)
            rest = read_all(running)
        last = [line for line in rest.splitlines() if line.startswith(b"data: ")][-1]
        error = json.loads(last[6:])["error"]
        assert error["code"] == "engine_restarted"
        assert how.name in error["message"]
        waiting.join(30)
        assert queued == [200], "what only waited is answered by the next engine"
        eventually(lambda: found.get("/health").json() == {"status": "ok"})
        assert found.metric("edge_engine_restarts_total") == 1


def test_a_request_that_killed_twice_is_quarantined(demo_model: Path, tmp_path: Path) -> None:
    with serving(tmp_path, "--ctx", "32768", model=demo_model) as found:
        body = {**found.endless(), "seed": 5, "stream": False}
        request = post_text("/v1/chat/completions", json.dumps(body).encode(), "Connection: close")
        for _ in range(2):
            eventually(lambda: found.get("/health").status_code == 200)
            with found.raw(request) as poison:
                eventually(lambda: found.n_running() == 1)
                os.kill(engine_pid(found), signal.SIGKILL)
                answer = read_all(poison)
                assert b" 503 " in answer.splitlines()[0]
                assert b"engine_restarted" in answer
        eventually(lambda: found.get("/health").status_code == 200)
        refused = found.post("/v1/chat/completions", body)
        assert refused.status_code == 422
        assert refused.json()["error"]["code"] == "request_quarantined"
        assert found.chat(max_tokens=3).status_code == 200


# ---- the log


def test_a_log_line_tells_numbers_and_no_prompt(demo_model: Path, tmp_path: Path) -> None:
    with serving(tmp_path, "--json-log", model=demo_model) as found:
        reply = found.chat()
        found.get("/nope\u202e")
        lines = [json.loads(line) for line in found.log.splitlines() if line.startswith("{")]
    (line,) = [line for line in lines if line["path"] == "/v1/chat/completions"]
    usage = reply.json()["usage"]
    assert line["id"] == reply.json()["id"] == reply.headers["x-request-id"]
    assert line["status"] == 200
    assert line["model"] == "demo-Q8_0"
    assert line["n_prompt_tokens"] == usage["prompt_tokens"]
    assert line["n_thought_tokens"] + line["n_answer_tokens"] == usage["completion_tokens"]
    assert 0 <= line["time_to_first_token_s"] <= line["total_time_s"]
    assert "347" not in found.log


def test_prompts_are_logged_where_asked_for(demo_model: Path, tmp_path: Path) -> None:
    with serving(tmp_path, "--log-prompts", model=demo_model) as found:
        found.chat(max_tokens=3)
        assert "What is 347 + 85?" in found.log


# ---- what does not start


def test_a_port_in_use_is_one_sentence(server: Server, demo_model: Path) -> None:
    said = refusal("serve", demo_model, "--port", str(server.port))
    assert f"port {server.port} cannot be opened (address already in use)" in said
    assert "no address of this machine" in refusal("serve", demo_model, "--host", "no.such.host.invalid")
    assert "cannot be opened" in refusal("serve", demo_model, "--host", "192.0.2.7", "--insecure")


def test_a_key_file_that_others_can_read_is_refused(demo_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("a-key-long-enough\n")
    file.chmod(0o644)
    assert "chmod 600" in refusal("serve", demo_model, "--api-key-file", file)
    file.chmod(0o600)
    file.write_text("# none\n")
    assert "holds no key" in refusal("serve", demo_model, "--api-key-file", file)
    assert "cannot be read" in refusal("serve", demo_model, "--api-key-file", tmp_path / "none")
    assert "too short" in refusal("serve", demo_model, "--api-key", "short")
    assert "too short or has a space" in refusal("serve", demo_model, "--api-key", "a key with spaces")


def test_a_model_that_cannot_be_served_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + b"\0" * 60)
    assert "bad.gguf" in refusal("serve", tmp_path / "bad.gguf")
    assert "none.gguf" in refusal("serve", tmp_path / "none.gguf")


def test_a_hostile_template_stops_the_start(demo_model: Path, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    escapes = (
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.popen('touch " + str(marker) + "').read() }}",
        "{{ ('%s'|attr('format'))|attr('__globals__') }}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 10 ** (10 ** 8) }}",
        "{% if %}",
    )
    for i, template in enumerate(escapes):
        model = tmp_path / f"hostile-{i}.gguf"
        with_template(demo_model, model, template)
        started_s = time.monotonic()
        assert "chat template failed" in refusal("serve", model), template
        assert time.monotonic() - started_s < 60
    assert not marker.exists()


def with_template(source: Path, target: Path, template: str) -> None:
    """A copy of a model file with another chat template."""
    import gguf

    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, "qwen2")
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        value = template if field.name == "tokenizer.chat_template" else field.contents()
        kind = field.types[0]
        writer.add_key_value(field.name, value, kind, sub_type=field.types[-1] if len(field.types) > 1 else None)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
