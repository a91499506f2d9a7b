"""The bundled demo checkpoint, and the model made from it on first use."""

import hashlib
from pathlib import Path

from edge.config import cache_dir

CHECKPOINT = Path(__file__).parent
QUANT_TYPE = "Q4_K_M"


def demo_model(quant_type: str = QUANT_TYPE) -> Path:
    """The demo as GGUF in the user's cache; converted if it is not there yet, or if the checkpoint changed."""
    digest = hashlib.sha256((CHECKPOINT / "model.safetensors").read_bytes()).hexdigest()[:12]
    folder = cache_dir() / "models" / f"demo-{digest}"
    path = folder / f"demo-{quant_type}.gguf"
    if not path.exists():
        from convert.pipeline import convert  # numpy and all: only where there is something to convert

        folder.mkdir(parents=True, exist_ok=True)
        convert(CHECKPOINT, [quant_type], folder)
    return path
