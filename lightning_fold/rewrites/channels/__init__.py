"""What every method that removes or merges channels shares."""
