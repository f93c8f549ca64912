"""Training by labels: one loop, with a task for lifting and one for heatmaps."""
