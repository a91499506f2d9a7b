"""A GGUF edge runtime: checkpoints to GGUF, GGUF to answers, on the board itself."""

__version__ = "0.1.0"
