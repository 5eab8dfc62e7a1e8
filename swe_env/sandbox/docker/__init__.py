"""The `docker` sandbox: containers of a Docker engine, or of Podman's through ``DOCKER_HOST``."""

from swe_env.sandbox.docker.factory import DockerFactory
from swe_env.sandbox.docker.sandbox import DockerSandbox

__all__ = ["DockerFactory", "DockerSandbox"]
