"""The IDs of a folder."""


class Id(str):
    __slots__ = ("_prefix", "_seqno")

    def __new__(cls, prefix, seqno):
        made = super().__new__(cls, f"{prefix}.{seqno}")
        made._prefix, made._seqno = prefix, seqno
        return made

    def __getnewargs__(self):
        return (self._prefix, self._seqno)
