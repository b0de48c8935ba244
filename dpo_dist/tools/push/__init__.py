"""`dpo-dist push`: writes a model and its card to a folder, and uploads it to the Hub."""
