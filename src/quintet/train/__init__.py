"""Training: the loop and what it needs beside the data and the model."""
