"""A grid that can fall ill, and whose truth is known. It changes by its own physics, its faults, and `models.grid.Grid`."""
