"""What is known of a packet besides its values.

`clock` step, weights version, microbatch and call; `optimizer_watch` when the weights change;
`text_inputs` and `token_places` which tokens its rows are.
"""
