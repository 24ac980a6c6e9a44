"""The Docker Engine of one host, spoken to over our own Transport."""

from clusterctl.dockerhost.host import DockerHost

__all__ = ["DockerHost"]
