"""What is known of a packet besides its values.

Read in this order: `clock` step, weights version, microbatch and call; `optimizer_watch` when the weights
change; `text` a text and its reader, `text_inputs` which call carries which text, `padding_mask` which
tokens are real, `token_places` which tokens the rows of a tensor are.
"""
