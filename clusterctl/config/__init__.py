"""What the user wants, from cluster.yaml, flags and environment."""

from clusterctl.config.layers import Origin
from clusterctl.config.load import Flags, Loaded, explained, load_flags, load_spec
from clusterctl.config.plain import spec_from_dict, spec_to_dict, spec_to_yaml

__all__ = [
    "Flags",
    "Loaded",
    "Origin",
    "explained",
    "load_flags",
    "load_spec",
    "spec_from_dict",
    "spec_to_dict",
    "spec_to_yaml",
]
