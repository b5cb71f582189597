"""This project against its peers, side by side in one run, and what its configs reach."""
