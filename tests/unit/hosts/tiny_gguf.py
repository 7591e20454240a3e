"""A llama of two layers with random weights as a GGUF file, packed as Q8_0 where rows allow."""

from __future__ import annotations

import numpy as np

WIDTH, INNER, HEADS, LAYERS = 32, 64, 2, 2
LETTERS = [chr(code) for code in range(33, 127)]
VOCABULARY = ["<|endoftext|>", "\u0120", *LETTERS, "th", "the"]
MERGES = ["t h", "th e"]


def write_gguf(path, seed=0):
    """The file `path`; equal seeds give equal bytes."""
    import gguf

    draw = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(len(VOCABULARY))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(VOCABULARY)
    writer.add_token_types([3, *[1] * (len(VOCABULARY) - 1)])
    writer.add_token_merges(MERGES)
    for name in ("bos", "eos", "pad", "unk"):
        getattr(writer, f"add_{name}_token_id")(0)

    def add(name, *shape):
        values = draw.normal(0, 0.1, shape).astype(np.float32)
        if len(shape) == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            packed = gguf.quants.quantize(values, kind)
            writer.add_tensor(name, packed, raw_dtype=kind)
        else:
            writer.add_tensor(name, values + 1.0)

    add("token_embd.weight", len(VOCABULARY), WIDTH)
    add("output_norm.weight", WIDTH)
    for layer in range(LAYERS):
        at = f"blk.{layer}."
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(f"{at}{name}.weight", WIDTH, WIDTH)
        for name in ("ffn_gate", "ffn_up"):
            add(f"{at}{name}.weight", INNER, WIDTH)
        add(f"{at}ffn_down.weight", WIDTH, INNER)
        add(f"{at}attn_norm.weight", WIDTH)
        add(f"{at}ffn_norm.weight", WIDTH)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
