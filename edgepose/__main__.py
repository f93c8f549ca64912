"""``python -m edgepose``."""

from edgepose.cli import main

if __name__ == "__main__":
    main()
