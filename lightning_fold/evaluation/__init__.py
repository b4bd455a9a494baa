"""Measure networks: metrics on data, size, latency, and two of them side by side."""
