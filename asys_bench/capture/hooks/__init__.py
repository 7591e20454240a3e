"""The hooks themselves.

Read in this order: `module_hooks` captures outputs and inputs, `gradient_hooks` and `input_gradient`
gradients; `root_hook` begins and ends a forward call. `graph_op` is what a hook becomes in a graph of
torch.compile, `own_hooks` what becomes of hooks when others copy or convert the module.
"""
