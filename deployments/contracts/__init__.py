"""What crosses a process boundary: messages, errors, settings. Standard library, pydantic and msgspec only."""
