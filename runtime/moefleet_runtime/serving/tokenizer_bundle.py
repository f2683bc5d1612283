"""The files that a gateway needs to make prompts of chats: tokenizer, chat template, small configurations. Pure but for
reading them.

As `trtllm.TrtllmService/GetTokenizer` sends them: one zip archive, in chunks, the last with the SHA-256 of it all.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

# In this order. A checkpoint has some of them; only the first is a must.
FILES: Final = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "config.json",
)
# DeepSeek-V2's are 5 MB together, the largest of the field below 40 MB.
FILES_MAX_BYTES: Final = 64 << 20
CHUNK_BYTES: Final = 1 << 20
# The oldest that a zip can say: the same files are the same bytes, whenever they were copied.
_DATE: Final = (1980, 1, 1, 0, 0, 0)


class NoTokenizerError(Exception):
    """The message says which file is missing or too large."""


@dataclass(frozen=True, slots=True)
class Bundle:
    data: bytes  # a zip archive
    sha256: str  # of `data`, hex

    def chunks(self) -> Iterator[tuple[bytes, str]]:
        """Data and fingerprint; the fingerprint is empty in all but the last."""
        for at in range(0, len(self.data), CHUNK_BYTES):
            last = at + CHUNK_BYTES >= len(self.data)
            yield self.data[at : at + CHUNK_BYTES], self.sha256 if last else ""


def make_bundle(folder: Path) -> Bundle:
    """Takes a second for the largest: not for an event loop."""
    if not (folder / FILES[0]).is_file():
        raise NoTokenizerError(f"{folder.name} has no {FILES[0]}")
    out = io.BytesIO()
    total = 0
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in FILES:
            file = folder / name
            if not file.is_file():
                continue
            total += file.stat().st_size
            if total > FILES_MAX_BYTES:
                raise NoTokenizerError(
                    f"{name} and those before have {total} bytes, at most {FILES_MAX_BYTES}"
                )
            archive.writestr(zipfile.ZipInfo(name, _DATE), file.read_bytes(), zipfile.ZIP_DEFLATED)
    data = out.getvalue()
    return Bundle(data, hashlib.sha256(data).hexdigest())
