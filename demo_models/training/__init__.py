"""Trains the two demo checkpoints from nothing: `python -m demo_models.training` (see `make demo-models`)."""
