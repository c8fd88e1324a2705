"""Tests of the engine: history in, exact output out. No Ray, no I/O."""
