"""The configuration of a run: one validated model, from layered YAML files and overrides."""

from asys_bench.config.loader import LoadedConfig, config_from_data, load_config
from asys_bench.config.problems import ConfigError, Origin, Problem
from asys_bench.config.schema import MasterConfig, config_sha256, dump_yaml
from asys_bench.config.sources import shipped_names

__all__ = [
    "ConfigError",
    "LoadedConfig",
    "MasterConfig",
    "Origin",
    "Problem",
    "config_from_data",
    "config_sha256",
    "dump_yaml",
    "load_config",
    "shipped_names",
]
