"""Records, plots and the terminal: what a run leaves for people."""
