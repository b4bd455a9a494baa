"""WRITE: the only code that replaces a parameter, a buffer or a module of a network."""
