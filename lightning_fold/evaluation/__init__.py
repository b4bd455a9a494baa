"""Measure networks (metrics on data, size, latency) and compare two side by side."""
