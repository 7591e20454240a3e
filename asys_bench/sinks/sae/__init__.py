"""Parts of the `sae_trainer` sink: its options, and one SAE's training inside a worker."""
