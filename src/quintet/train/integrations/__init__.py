"""Other libraries that train a run: DeepSpeed's engine, and the training loops of transformers and Lightning."""
