"""What the agent tells Prometheus: read when it is asked for, from what the rooms keep. Nothing is registered."""
