"""Replace layers by pairs of low-rank layers."""
