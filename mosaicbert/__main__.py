"""Entry point of `python -m mosaicbert`."""

from mosaicbert.cli import main

if __name__ == "__main__":
    main()
