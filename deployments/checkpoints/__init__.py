"""Work on checkpoint folders apart from serving: quantize one, compare two."""
