"""Wire structs: what a request body may hold, field by field."""
