"""The service: turns HTTP requests into calls on `model`, and mounts the page."""

__version__ = "0.1.0"
