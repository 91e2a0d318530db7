"""Engines: vLLM, diffusers, and their deterministic stand-in. No Ray and no HTTP here."""
