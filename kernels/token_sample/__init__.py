"""token_sample: some of a tensor's rows."""
