"""The hooks themselves.

`module_hooks` captures outputs and inputs, `gradient_hooks` and `input_gradient` gradients. `root_hook`
begins and ends a forward call, `graph_op` is what a hook becomes in a compiled graph, `own_hooks` and
`inert` what becomes of hooks when others copy or convert the module.
"""
