"""Commands of `atelier` that have no server: what they print. The work is in `deployments.checkpoints`."""
