"""Configuration of a run: schema, presets, overrides."""

from distkg.config.errors import ConfigError
from distkg.config.families import FAMILIES, FamilyName, family_of
from distkg.config.fields import Resume, Section
from distkg.config.json_schema import json_schema
from distkg.config.loading import (
    CLUSTERS,
    PRESETS,
    change_config,
    load_config,
    load_config_content,
    load_written_config,
    parse_config,
    preset_file,
    preset_names,
)
from distkg.config.run_config import RunConfig, default_values, flatten, flatten_tree, resume_class
from distkg.config.sections import (
    CheckpointConfig,
    ClusterConfig,
    DataConfig,
    EvaluateConfig,
    GeneratedConfig,
    ModelConfig,
    NegativesConfig,
    NodePieceConfig,
    ObjectiveConfig,
    OptimizerConfig,
    PoolConfig,
    RegularizerConfig,
    TrainConfig,
)
from distkg.config.strict import StrictModel, parse_mapping, parse_options

__all__ = [
    "CLUSTERS",
    "FAMILIES",
    "PRESETS",
    "CheckpointConfig",
    "ClusterConfig",
    "ConfigError",
    "DataConfig",
    "EvaluateConfig",
    "FamilyName",
    "GeneratedConfig",
    "ModelConfig",
    "NegativesConfig",
    "NodePieceConfig",
    "ObjectiveConfig",
    "OptimizerConfig",
    "PoolConfig",
    "RegularizerConfig",
    "Resume",
    "RunConfig",
    "Section",
    "StrictModel",
    "TrainConfig",
    "change_config",
    "default_values",
    "family_of",
    "flatten",
    "flatten_tree",
    "json_schema",
    "load_config",
    "load_config_content",
    "load_written_config",
    "parse_config",
    "parse_mapping",
    "parse_options",
    "preset_file",
    "preset_names",
    "resume_class",
]
