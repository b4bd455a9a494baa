"""The commands of ``lightning-fold``."""
