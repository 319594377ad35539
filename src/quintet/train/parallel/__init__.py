"""Training in several processes, on PyTorch's own engines: which way, their process group, and the model spread."""
