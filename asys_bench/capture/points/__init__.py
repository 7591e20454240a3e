"""Which modules are hooked, and which of their tensors are captured.

`hookpoints` resolves globs against a model, `selection` picks a tensor of what a module returns, `rows`
says what a row of it is, `default_hooks` chooses modules when nobody said, `wrapped` finds the model in
what training loops put around it.
"""
