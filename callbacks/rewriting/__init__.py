"""Base classes of the callbacks that rewrite a network."""
