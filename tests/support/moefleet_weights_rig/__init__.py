"""Real servers on loopback that weights are fetched from, with the faults that networks have."""
