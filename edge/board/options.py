"""Options that every command shares which starts an engine."""

from typing import Any

import click

from edge.config import N_CTX_TOKENS

ALL_LAYERS = 1 << 20


class GpuLayers(click.ParamType):  # type: ignore[type-arg] # generic in the newest click only
    """`auto` (None), `all` (more than any model has) or a number of layers."""

    name = "auto|all|N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        if value == "auto":
            return None
        if value == "all":
            return ALL_LAYERS
        if not (isinstance(value, int) or (isinstance(value, str) and value.isascii() and value.isdigit())):
            self.fail(f"{value!r} is neither auto, all nor a number of layers", param, ctx)
        return int(value)


CTX = click.option(
    "--ctx", type=click.IntRange(64, 1 << 20), metavar="N",
    help=f"Tokens the context holds: prompt, thought and answer.  [{N_CTX_TOKENS}, less if memory is short]",
)  # fmt: skip
THREADS = click.option("--threads", type=click.IntRange(1, 512), metavar="N", help="[one per fast core]")
GPU_LAYERS = click.option(
    "--gpu-layers", type=GpuLayers(), default="auto", metavar="auto|all|N", help="Layers on the GPU.  [as many as fit]"
)
FORCE = click.option("--force", is_flag=True, help="Start a model that does not fit into memory.")
