"""A run's SAEs for the Hugging Face hub: `asys-run push`.

Read in this order: `facts` (what is said of the SAEs, and nothing else of the run), `loading` (code that
opens them), `card` (the model card), `folder` (the files that are sent), `push` (sending them). The way back,
`hf://org/name`, is `sae.exchange.hub`.
"""
