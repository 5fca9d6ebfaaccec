"""What the processes of a queue do in its tests; without torch, so that they begin quickly."""

import os
import time
from pathlib import Path


def run_payload(payload):
    """Returns the payload doubled, or does what it says: fail, die, die once (a file tells), or tell its variables."""
    if payload == "fail":
        raise ValueError("as asked\nand more")
    if payload == "die":
        os._exit(3)
    if isinstance(payload, Path):
        if not payload.exists():
            payload.touch()
            os._exit(4)
        return "at last"
    if payload == "where":
        time.sleep(0.3)  # so that both processes get one
        return os.environ["PLACE"], os.getpid()
    if payload == "long":
        time.sleep(600)
    return 2 * payload
