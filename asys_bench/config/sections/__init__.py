"""The sections of the configuration, one frozen model each; `config.schema` is their root.

`run` holds what each is built from (`Section`), `relations` what fields of several sections must satisfy
together.
"""
