"""The sections of the configuration, one frozen model each; `config.schema` is their root.

`section` is what each is built from, `relations` what fields of several sections must satisfy together.
"""
