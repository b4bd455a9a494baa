"""Lightning callbacks that compress a network while it trains; import them as ``lightning_fold.callbacks``."""
