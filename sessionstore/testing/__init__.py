"""Help for the tests of programs that keep their state in a session store.

A pytest plugin brings the fixtures; it is there as soon as the package is installed:

- ``session_store``: an empty ``SessionStore`` that no other test sees;
- ``session_store_url``: its URL, for a second store or another process;
- ``run_forked(function, *args, timeout=60)``: runs a function in a forked child, and
  returns its result, or raises what it raised;
- ``start_forked(function, *args, timeout=60)``: starts a forked child, and returns its
  ``Child``, which the test must wait for.

Tests run on SQLite files, or on the database that ``--sessionstore-url`` or the
environment's ``SESSIONSTORE_TEST_URL`` names; under xdist too.  The URL's database
must be there; each test has tables of its own in it, which are dropped at its end.

``sessionstore.testing.contract`` has a suite for your own ``Store`` classes.
"""

from sessionstore.testing.children import Child, ChildError, run_forked

__all__ = ["Child", "ChildError", "run_forked"]
