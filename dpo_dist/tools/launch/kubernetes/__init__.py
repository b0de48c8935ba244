"""A run as Kubernetes manifests, which are built as dictionaries and written as YAML."""
