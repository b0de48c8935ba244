"""Files that survive crashes: journals, manifests and locks; and the records in them."""
