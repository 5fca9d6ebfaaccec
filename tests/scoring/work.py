"""Function that the job queue runs in its tests. It does not import torch, so that processes start quickly."""

import os
import time
from pathlib import Path


def run_payload(payload):
    """Double a number or string, or act as a payload requests.

    "fail" raises an exception, "die" exits the process, "where" returns the variable WORKER and the process id, and
    "long" sleeps. A path exits the process unless the file exists, and creates it.
    """
    if payload == "fail":
        raise ValueError("first line\nsecond line")
    if payload == "die":
        os._exit(3)
    if isinstance(payload, Path):
        if not payload.exists():
            payload.touch()
            os._exit(4)
        return "second attempt"
    if payload == "where":
        time.sleep(0.3)  # so that both processes get a job
        return os.environ["WORKER"], os.getpid()
    if payload == "long":
        time.sleep(600)
    return 2 * payload
