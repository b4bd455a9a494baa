"""WRITE: the only code that replaces parameters, buffers or modules of a network."""
