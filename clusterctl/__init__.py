"""clusterctl: from a list of machines to a verified inference cluster and a served model."""

__version__ = "0.1.0"
