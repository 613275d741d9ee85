"""The service: turns HTTP requests into calls on `model`, and mounts the page."""
