"""python -m moefleet_gateway.openai.alive: exit code 0 when SMG answers. The kubelet's probe, which cannot reach loopback itself."""

from __future__ import annotations

import http.client
import os
import sys

from moefleet_gateway.settings import load

# Below the probe's own timeout.
TIMEOUT_S = 4.0


def main() -> int:
    openai = load(os.environ).openai
    if openai is None:
        print("MOEFLEET_OPENAI_LISTEN is not set", file=sys.stderr)
        return 2
    connection = http.client.HTTPConnection(openai.smg.host, openai.smg.port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", "/liveness")
        status = connection.getresponse().status
    except OSError as error:
        print(f"{openai.smg}: {error}", file=sys.stderr)
        return 1
    finally:
        connection.close()
    return 0 if status == 200 else 1


if __name__ == "__main__":
    sys.exit(main())
