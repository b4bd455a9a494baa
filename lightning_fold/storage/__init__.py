"""Networks on disk: structure as plain data, files, checkpoints, exported programs."""
