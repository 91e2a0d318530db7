"""Model names, deployment handles, readiness, and the operations that call them in order."""
