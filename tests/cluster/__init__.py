"""Tests on a real Ray, with real SIGKILLs."""
