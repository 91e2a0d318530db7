"""What crosses a process boundary: frozen messages, the error tree, settings. Standard library, pydantic, msgspec."""
