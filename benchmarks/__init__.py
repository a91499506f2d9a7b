"""Tokens per second and memory, with proof of the conditions."""
