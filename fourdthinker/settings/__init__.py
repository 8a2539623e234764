"""Settings: pydantic models that are read from YAML, explained in `--help` and docs/settings.md, and checked.

A class of settings derives from `Settings`; each of its fields holds type, default, bounds and explanation.
What is read from a file and what is given besides goes through `make_config`, so that every error names the
key, the value, where it stands and what to give instead.
"""

from fourdthinker.settings.describe import Setting, settings_of, settings_tables, settings_text
from fourdthinker.settings.fields import (
    Bool,
    Float,
    Int,
    Name,
    Names,
    Section,
    Settings,
    Text,
    make_config,
    make_section,
)
from fourdthinker.settings.yaml_files import origins, parse_yaml, read_yaml

__all__ = [
    "Bool",
    "Float",
    "Int",
    "Name",
    "Names",
    "Section",
    "Setting",
    "Settings",
    "Text",
    "make_config",
    "make_section",
    "origins",
    "parse_yaml",
    "read_yaml",
    "settings_of",
    "settings_tables",
    "settings_text",
]
