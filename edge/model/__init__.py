"""The model file: what its header says, and how its chat template turns messages into text."""
