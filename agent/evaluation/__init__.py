"""The agent judged: policies in closed loop with simulated grids, against what would have happened without them."""
