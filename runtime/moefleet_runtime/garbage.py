"""When Python looks for reference cycles: seldom, and never in what was there when serving began.

By its own thresholds (700, 10, 10) it looks each time that 700 objects more came than went, which one frame of a thousand answers does,
and every so often in all objects of the process: with 1000 streams that was a sixth of the server's processor time and a tenth of the
engine host's, in pauses of up to 75 ms.

Cycles there are: grpc.aio leaves one of eight objects for each call, with the call's headers in it. So a look comes after some 2,500
calls, and what waits for it is a few MiB, 40 at most where every call brings 16 KiB of headers. Beside that nothing grows: over 56,000
requests the server's objects stayed the same to the last one, what it has from malloc grew by 0.1 MiB, and resident memory rises to the
most that was ever there at once (2 MiB in the first 20,000) and stays.
"""

from __future__ import annotations

import gc
from typing import Final

THRESHOLDS: Final = (20_000, 20, 20)


def settle() -> None:
    """Call when everything that stays is loaded. Garbage of the start goes first: it may hold tensors."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
