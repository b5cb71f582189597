"""What is trained: a model joined with its loss and metrics."""
