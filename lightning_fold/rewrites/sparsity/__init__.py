"""Zeros: made, counted, and trained again."""
