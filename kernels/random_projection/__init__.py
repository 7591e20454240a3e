"""random_projection: each row times a random matrix."""
