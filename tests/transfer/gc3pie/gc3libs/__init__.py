"""What a pickle of GC3Pie's needs to be loaded, with the names that are in pickles."""

import time


class Persistable:
    pass


class Run:
    def __init__(self) -> None:
        self._state = "NEW"
        self._exitcode = self._signal = None
        self.state_last_changed = time.time()

    @property
    def state(self) -> str:
        return self._state

    @state.setter
    def state(self, value: str) -> None:
        self._state = value


class Task(Persistable):
    def __init__(self, jobname: str, **attributes: object) -> None:
        self.jobname = jobname
        self.execution = Run()
        self.__dict__.update(attributes)


class ShellApp(Task):
    pass
