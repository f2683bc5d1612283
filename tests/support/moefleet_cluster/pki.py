"""Keys and certificates of a control plane, by openssl 3."""

from __future__ import annotations

import subprocess
from pathlib import Path

# Clusters live for minutes; a month lets one be kept for exploring.
DAYS = "30"
# The first address of the Service network is `kubernetes.default`, the address that pods use.
API_SERVICE_ADDRESS = "10.96.0.1"
_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", DAYS)


def make(folder: Path, address: str) -> None:
    """Writes `ca`, `apiserver` and `kubelet-client` (.crt, .key) and `sa.key`, which signs service account tokens.

    The server's certificate names 127.0.0.1 besides its own address, so that clients which know no server name (kopf, browsers)
    work through a forwarded port too.
    """
    names = [
        *(f"IP:{ip}" for ip in sorted({"127.0.0.1", address, API_SERVICE_ADDRESS})),
        *(
            f"DNS:{name}"
            for name in ("localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc")
        ),
        "DNS:kubernetes.default.svc.cluster.local",
    ]
    _openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", str(folder / "sa.key"))
    _certificate(folder, "ca", "/CN=moefleet-test-ca", "-addext", "keyUsage=critical,keyCertSign,cRLSign")
    _certificate(
        folder, "apiserver", "/CN=kube-apiserver",
        "-CA", str(folder / "ca.crt"), "-CAkey", str(folder / "ca.key"),
        "-addext", "basicConstraints=critical,CA:FALSE", "-addext", "extendedKeyUsage=serverAuth",
        "-addext", f"subjectAltName={','.join(names)}",
    )  # fmt: skip
    # The API server's identity towards kubelets (logs, exec). Kubelets trust exactly this certificate.
    _certificate(folder, "kubelet-client", "/O=system:masters/CN=kube-apiserver-kubelet-client")


def _certificate(folder: Path, name: str, subject: str, *more: str) -> None:
    paths = ["-keyout", str(folder / f"{name}.key"), "-out", str(folder / f"{name}.crt")]
    _openssl("req", "-x509", *_NEW_KEY, "-subj", subject, *paths, *more)


def _openssl(*arguments: str) -> None:
    done = subprocess.run(["openssl", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(
            f"openssl {arguments[0]} ended with {done.returncode}: {done.stderr.strip()[-500:]}"
        )
