"""A run in experiment trackers (wandb, trackio, MLflow): one process that reads the stats page and sends.

Read in this order: `tracker` (what each of them must do), `wandb_runs`, `trackio_runs`, `mlflow_runs` (one
each), `feed` (the thread that waits for the network), `plugin` (the monitor), `ending` (report and summary,
once they are written). It imports no tracker's package before it is opened.
"""
