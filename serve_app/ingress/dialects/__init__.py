"""Dialects translate a wire format to core requests and back. No I/O, no Ray."""
