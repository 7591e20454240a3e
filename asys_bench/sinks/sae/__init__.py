"""Parts of the `sae_trainer` sink: its options, one SAE's training inside a worker, evaluations beside it."""
