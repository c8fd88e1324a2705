"""Real processes, nodes and clusters killed under a mixed load: `python -m tests.chaos`. See `tests.chaos.__main__`."""
