"""The version, read by the build and by `rapidfireai --version`."""

__version__ = "0.1.0"
