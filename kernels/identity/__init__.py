"""Identity: the tensor's own bytes."""
