"""A short name for some bytes, by which a cache knows them again."""

# hashlib has the same function, and takes 4 ms to import, for it loads OpenSSL.
from _blake2 import blake2b

DIGEST_BYTES = 8


def digest(content: bytes, size: int = DIGEST_BYTES) -> str:
    """BLAKE2b of ``content``, in hex."""
    return blake2b(content, digest_size=size).hexdigest()
