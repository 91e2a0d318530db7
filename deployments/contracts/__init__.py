"""What crosses a process boundary: messages, errors, settings. No Ray, torch or HTTP."""
