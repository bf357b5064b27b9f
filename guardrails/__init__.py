"""Library behind the scripts beside it. Imports nothing, so that every script starts fast."""

__version__ = "0.1.0"
