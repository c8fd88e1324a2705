"""Tests of orchestrations, without Ray and without waiting."""
