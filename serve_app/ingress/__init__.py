"""HTTP: one route table, handlers, middleware, error rendering, dialects."""
