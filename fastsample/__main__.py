"""``python -m fastsample``: the same as the command ``fastsample``."""

from .cli import main

if __name__ == "__main__":
    raise SystemExit(main())
