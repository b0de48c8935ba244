"""`dpo-dist push`: a folder for the Hugging Face Hub, with a model card."""
