"""Payloads that only somebody with the key can read, or have written."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from sessionstore.errors import ConfigurationError, DecodeError
from sessionstore.serializers.envelope import FERNET, writer_of
from sessionstore.serializers.keys import Keys
from sessionstore.serializers.protocol import Serializer

if TYPE_CHECKING:
    from cryptography.fernet import MultiFernet

__all__ = ["EncryptedSerializer"]

_TOKEN = re.compile(rb"[\w=-]*", re.ASCII)


class EncryptedSerializer:
    """What ``inner`` makes, encrypted and signed by ``cryptography``'s MultiFernet.

    The first of ``keys`` encrypts, and each of them decrypts.  ``allow_plain`` also
    reads what was written earlier, as in ``SignedSerializer``; and as there, an old
    payload can be put back, or another row's.  The time of writing, the size, the state
    and all other columns can be read without a key.

    The payload is a Fernet token.

    Raises ConfigurationError for what is no key, and if ``cryptography`` is not
    installed.
    """

    def __init__(
        self,
        inner: Serializer,
        keys: Keys | Iterable[str | bytes],
        *,
        allow_plain: bool = False,
    ) -> None:
        self._inner = inner
        self._keys = keys if isinstance(keys, Keys) else Keys(keys)
        self._allow_plain = allow_plain
        self._fernet = _fernet(self._keys)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._inner!r}, {self._keys!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        # A MultiFernet would pickle with the keys in it.
        return _remade, (type(self), self._inner, self._keys, self._allow_plain)

    def dumps(
        self, obj: object, persistent_id: Callable[[object], object | None]
    ) -> bytes:
        """Return ``obj`` as ``inner`` does, encrypted."""
        return self._fernet.encrypt(self._inner.dumps(obj, persistent_id))

    def loads(self, payload: bytes, persistent_load: Callable[[Any], object]) -> object:
        """Return the object, if one of these keys decrypts it."""
        from cryptography.fernet import InvalidToken

        if not payload.startswith(FERNET):
            if self._allow_plain:
                return self._inner.loads(payload, persistent_load)
            raise DecodeError(
                f"it is not encrypted (written by {writer_of(payload)}); if it dates "
                "from before payloads were encrypted, read it with allow_plain=True "
                "and save it again"
            )
        try:
            # Fernet ignores other characters in a token, and bits that base64 does not
            # use.
            if not _TOKEN.fullmatch(payload):
                raise InvalidToken
            decrypted = self._fernet.decrypt(payload)
            if base64.urlsafe_b64encode(base64.urlsafe_b64decode(payload)) != payload:
                raise InvalidToken
        except InvalidToken:
            raise DecodeError(
                f"none of the {len(self._keys)} keys decrypts it: either it was "
                "changed or truncated, or its key is missing; add a missing key after "
                "the others"
            ) from None
        return self._inner.loads(decrypted, persistent_load)


def _fernet(keys: Keys) -> MultiFernet:
    try:
        from cryptography.fernet import Fernet, MultiFernet
    except ImportError as error:
        raise ConfigurationError(
            "EncryptedSerializer needs the package cryptography: "
            "pip install 'sessionstore[crypto]'"
        ) from error
    return MultiFernet([Fernet(base64.urlsafe_b64encode(key)) for key in keys])


def _remade(
    cls: type[EncryptedSerializer], inner: Serializer, keys: Keys, allow_plain: bool
) -> EncryptedSerializer:
    return cls(inner, keys, allow_plain=allow_plain)
