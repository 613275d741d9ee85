"""Weight files: what they are, and the one place that reads and writes them."""
