"""The command ``sessionstore``: to look into stores, and to change what is in them.

To add a command, write a function in a module of this package and add one line for it
to ``commands``.  Its first parameter is a ``Common``, which opens the store and the
session that were named, and has the ``Output`` to show things by; the others are its
arguments and options, as typer takes them from their annotations.  The docstring is
its help: the first line stands in the list of commands.  What goes wrong is raised, as
any ``SessionStoreError``: see ``running``.
"""
