"""`python -m mosaicbert` is the command `mosaicbert`."""

from mosaicbert.cli import main

if __name__ == "__main__":
    main()
