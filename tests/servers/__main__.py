"""`python -m tests.servers fetch`: put what the servers of the tests need into the cache."""

from __future__ import annotations

import sys

from . import kafka


def main(arguments: list[str]) -> int:
    """Fetch the broker; without Java or Maven say so and go on, since tests that need it are skipped then."""
    if arguments != ["fetch"]:
        print("usage: python -m tests.servers fetch", file=sys.stderr)
        return 2
    missing = kafka.unavailable()
    if missing is not None:
        print(missing, file=sys.stderr)
        return 0
    kafka.fetch()
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
