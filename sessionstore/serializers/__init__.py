"""Ways to turn objects into payloads, for a store's ``serializer=``.

What somebody who can write to the database can do, if payloads are made by

- ``PickleSerializer()``: run any code in the programs that read it;
- ``PickleSerializer(allow=...)``: make objects of the classes allowed, with any
  attributes;
- ``JsonSerializer(types)``: the same, and their ``__init__`` is not called;
- ``SignedSerializer``: put back an older payload, or another row's;
- ``EncryptedSerializer``: the same, but not read what is in it;
- ``CompressedSerializer``: the same as with the serializer inside it.

A payload's first bytes tell what wrote it; "The stored format" has their table.  Each
serializer reads its own payloads only, and raises DecodeError for others.  There are
two exceptions: ``allow_plain`` lets plain pickles be read, and ``CompressedSerializer``
leaves small payloads as they are.

A serializer of your own has ``dumps`` and ``loads`` as in ``Serializer``, and raises
DecodeError for what it cannot read.  It has to pickle if its stores are to.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sessionstore.serializers.allowed import ALWAYS
from sessionstore.serializers.pickles import PickleSerializer
from sessionstore.serializers.protocol import Serializer

if TYPE_CHECKING:
    from sessionstore.serializers.compressed import CompressedSerializer
    from sessionstore.serializers.encrypted import EncryptedSerializer
    from sessionstore.serializers.json import JsonSerializer
    from sessionstore.serializers.keys import Keys, new_key, read_keys
    from sessionstore.serializers.signed import SignedSerializer

__all__ = [
    "ALWAYS",
    "CompressedSerializer",
    "EncryptedSerializer",
    "JsonSerializer",
    "Keys",
    "PickleSerializer",
    "Serializer",
    "SignedSerializer",
    "new_key",
    "read_keys",
]

#: Imported only when they are used, as every store imports this package.
_OTHERS = {
    "CompressedSerializer": "compressed",
    "EncryptedSerializer": "encrypted",
    "JsonSerializer": "json",
    "Keys": "keys",
    "SignedSerializer": "signed",
    "new_key": "keys",
    "read_keys": "keys",
}


def __getattr__(name: str) -> Any:
    if name not in _OTHERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_OTHERS[name]}"), name)
