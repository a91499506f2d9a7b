"""Checkpoint to GGUF: read safetensors, quantise, write one whole file. Nothing from the checkpoint is executed."""
