"""Which modules are hooked, and which of their tensors are captured.

Read in this order: `hookpoints` resolves globs against a model, `selection` picks a tensor of what a module
takes or returns, `rows` says what a row of it is. `default_hooks` chooses modules when nobody named any,
`untrained_networks` which of them are not trained, and the model inside its wrappers (`unwrap`).
"""
