"""Steps after the cut: rescaling, least squares and statistics, each checked on held-out inputs."""
