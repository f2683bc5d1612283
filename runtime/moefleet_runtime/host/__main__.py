"""`python -m moefleet_runtime.host FD`: started by the server process only."""

import sys

from moefleet_runtime.host.process import run

if __name__ == "__main__":
    sys.exit(run(int(sys.argv[1])))
