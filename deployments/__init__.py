"""Replica shells (Ray Serve) and, below them, the engines and contracts they run on."""
