"""`dpo-dist launch`: scripts and manifests that run all phases on a machine or a cluster."""
