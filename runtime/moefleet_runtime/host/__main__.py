"""`python -m moefleet_runtime.host FD`: started by the server process only."""

import os
import sys

from moefleet_runtime.host.process import run

if __name__ == "__main__":
    status = run(int(sys.argv[1]))
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: engines leave threads and hooks that wait for things which never come, and the exit code is ours.
    os._exit(status)
