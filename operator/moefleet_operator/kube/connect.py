"""Where the API server is and who we are there: in-cluster ServiceAccount or kubeconfig; one source for kopf and for us."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from kubernetes.aio import config as kube_config
from kubernetes.aio.client import Configuration


@dataclass(frozen=True, slots=True)
class Credentials:
    """What kopf's login wants to know; made anew at each login, because ServiceAccount tokens are rotated."""

    server: str
    ca_path: str | None
    verify: bool
    scheme: str | None
    token: str | None
    certificate_path: str | None
    key_path: str | None
    proxy_url: str | None


async def connect(kubeconfig: str | None) -> Configuration:
    """kubeconfig: its path(s), or None for the ServiceAccount of our pod. The token is read again every minute."""
    configuration = Configuration()
    if kubeconfig is None:
        kube_config.load_incluster_config(client_configuration=configuration)
    else:
        await kube_config.load_kube_config(
            config_file=kubeconfig, client_configuration=configuration, persist_config=False
        )
    return configuration


def pooled(configuration: Configuration, connections: int) -> Configuration:
    """The same server and identity for a session of its own, with so many connections."""
    own = copy.copy(configuration)
    # The refresh hook writes the token into the configuration that it is called with.
    own.api_key = dict(configuration.api_key)
    own.connection_pool_maxsize = connections
    # The proxy of the environment counts as before, but it is looked up here once: aiohttp would do it, and read ~/.netrc
    # for a login that we never use, at each request.
    own.proxy = own.proxy or _environment_proxy(own.host)
    own.client_session_kwargs = {"trust_env": False}
    return own


def _environment_proxy(host: str) -> str | None:
    url = urlsplit(host)
    if not url.hostname or proxy_bypass(url.netloc):
        return None
    return getproxies().get(url.scheme)


async def credentials(configuration: Configuration) -> Credentials:
    header: str | None = await configuration.get_api_key_with_prefix("BearerToken")
    scheme, token = _split(header)
    return Credentials(
        server=_text(configuration.host) or "",
        ca_path=_text(configuration.ssl_ca_cert),
        verify=bool(configuration.verify_ssl),
        scheme=scheme,
        token=token,
        certificate_path=_text(configuration.cert_file),
        key_path=_text(configuration.key_file),
        proxy_url=_text(configuration.proxy),
    )


def _split(header: str | None) -> tuple[str | None, str | None]:
    if not header:
        return None, None
    scheme, space, token = header.partition(" ")
    return (scheme, token.strip()) if space else (None, header.strip())


def _text(value: Any) -> str | None:
    return str(value) if value else None
