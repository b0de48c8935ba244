"""A run as Kubernetes manifests, and the script that submits them one phase after the other.

Manifests are built as dictionaries and dumped: what is nested, optional and repeated in every
object is a function here, and no value can break the YAML.
"""
