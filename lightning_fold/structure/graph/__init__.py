"""The exported graph, brought to one form that the rules can read."""
