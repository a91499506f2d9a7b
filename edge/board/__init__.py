"""The machine: cores, memory, sensors, and what they allow."""
