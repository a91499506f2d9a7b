"""Tokens: the engine process, its scheduler, and the one door to llama.cpp."""
