"""Files that survive crashes: journals, manifests, locks; and the records in them."""
