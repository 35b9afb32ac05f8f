"""Repeatable measurements: each prints a table and writes JSON to bench/results. Nothing here is asserted in tests."""
