"""What is written of an SAE: versioned folders, safetensors and JSON, never pickle.

Read in this order: `native_format` (the folder, which SAELens opens), `checkpoint_store` (its versions,
of which a reader finds a complete one at any moment), `trainer_state` (what a resumed training needs
besides).
"""
