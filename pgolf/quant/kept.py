"""What takes seconds to make from source text, kept on disk by its content."""

import contextlib
from collections.abc import Callable
from pathlib import Path

from pgolf.errors import UserError
from pgolf.files import sha256_bytes, write_bytes


def kept(folder: Path | None, maker: str, make: Callable[[str], str], source: str) -> str:
    """`make(source)`, from its file in `folder` where there is one that is whole; None keeps nothing.

    maker: all that the result depends on besides the source, such as the text and the versions of what makes it.
    """
    if folder is None:
        return make(source)
    file = folder / sha256_bytes(f"{maker}\0{source}".encode())
    if file.is_file():
        seal, _, text = file.read_bytes().partition(b"\n")
        if seal == sha256_bytes(text).encode():
            return text.decode()
    result = make(source)
    with contextlib.suppress(UserError):  # a cache that cannot be written costs a run time, and nothing else
        write_bytes(file, f"{sha256_bytes(result.encode())}\n{result}".encode())
    return result
