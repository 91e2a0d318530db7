"""The application: ingress (HTTP) over gateway over graph, put together by `serve_app.app.build`."""
