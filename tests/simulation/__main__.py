"""Runs the simulation for as long as one likes, or one seed again, or every crash point: see `--help`."""

from __future__ import annotations

from tests.simulation.command import main

if __name__ == "__main__":
    main()
