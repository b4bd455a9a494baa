"""What stands behind each command of ``lightning-fold``."""
