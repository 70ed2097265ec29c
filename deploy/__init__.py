"""The `deploy` command and its Python API: arguments, progress, printing; no science."""

__version__ = "0.1.0"
