"""The IDs of a SQL store."""


class IntId(int):
    def __new__(cls, prefix, seqno):
        return super().__new__(cls, seqno)

    def __getnewargs__(self):
        return (None, int(self))
