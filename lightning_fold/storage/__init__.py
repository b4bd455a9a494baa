"""Networks on disk: structure as plain data, network files, checkpoints, exported programs."""
