"""A child that loads a model once and measures contexts of it: one JSON line in, one out.

    python -m edge.engine.trial MODEL.gguf LOAD_MODE N_GPU_LAYERS CPU,CPU,…

A line in is {"n_threads", "flash_attention", "n_ubatch_tokens", "n_prompt_tokens", "n_generated_tokens"}; a line out is
{"prompt_s", "generation_s"} or {"problem"}. The clock includes decoding and nothing else. Ends when its input does.
"""

import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from edge.board.topology import bind
from edge.config import LoadMode

N_CTX_TOKENS = 1024


def main() -> None:
    path, n_gpu_layers, cpus = Path(sys.argv[1]), int(sys.argv[3]), sys.argv[4]
    load_mode: LoadMode = "map" if sys.argv[2] == "map" else "read"
    if cpus:
        bind(int(cpu) for cpu in cpus.split(","))

    from edge.engine.llama import Llama, Loading  # loads libllama: only now, with the affinity set
    from edge.errors import EdgeError

    loading = Loading(N_CTX_TOKENS, 256, n_sequences=1, n_outputs=1, n_threads=1)
    loading = replace(loading, load_mode=load_mode, n_gpu_layers=n_gpu_layers)
    try:
        llama = Llama(path, loading)
        _say({"ready": True})
    except EdgeError as error:
        _say({"problem": str(error)})
        return
    current = loading
    for line in sys.stdin:
        asked = json.loads(line)
        wanted = replace(
            loading,
            n_threads=asked["n_threads"],
            flash_attention=asked["flash_attention"],
            n_ubatch_tokens=asked["n_ubatch_tokens"],
        )
        try:
            if wanted != current:
                llama.reopen(wanted)
                current = wanted
                _measure(llama, 32, 2)  # the threads start, the buffers are touched
            _say(_measure(llama, asked["n_prompt_tokens"], asked["n_generated_tokens"]))
        except EdgeError as error:
            _say({"problem": str(error)})
            return


def _measure(llama: Any, n_prompt_tokens: int, n_generated_tokens: int) -> dict[str, float]:
    llama.clear()
    batch = llama.new_batch()
    prompt = [(7919 * i) % llama.n_vocab for i in range(n_prompt_tokens)]
    started_s = time.perf_counter()
    for begin in range(0, len(prompt), batch.n_tokens_max):
        batch.clear()
        for i, token in enumerate(prompt[begin : begin + batch.n_tokens_max], start=begin):
            batch.add(token, i, 0, output=i + 1 == len(prompt))
        _decode(llama, batch)
    llama.wait()
    prompt_s = time.perf_counter() - started_s
    started_s = time.perf_counter()
    for i in range(n_generated_tokens):
        batch.clear()
        batch.add((104729 * i) % llama.n_vocab, len(prompt) + i, 0, output=True)
        _decode(llama, batch)
        llama.wait()
    generation_s = time.perf_counter() - started_s
    batch.close()
    return {"prompt_s": prompt_s, "generation_s": generation_s}


def _decode(llama: Any, batch: Any) -> None:
    code = llama.decode(batch)
    assert code == 0, f"decode returned {code} on an empty context"


def _say(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)  # noqa: T201 - the line the parent reads


if __name__ == "__main__":
    main()
