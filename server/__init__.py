"""HTTP: the endpoint in front of graphs, and the embedded engine that serves a policy."""
