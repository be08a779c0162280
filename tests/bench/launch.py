"""Runs one program and measures it: `python -I -S launch.py REPORT PROGRAM ARGUMENTS…` writes REPORT as JSON.

A program of its own, and a small one, because Linux counts the memory of the process that forked into the peak of what
it started: the bench itself holds hundreds of megabytes.
"""

import json
import os
import sys
import time


def main() -> None:
    """Fork, execute, wait, and write what the kernel counted for that one process (and those it waited for)."""
    report, *command = sys.argv[1:]
    began = time.monotonic()
    pid = os.fork()
    if pid == 0:
        try:
            os.execvp(command[0], command)  # noqa: S606 -- a shell is what must not be measured
        finally:
            os._exit(127)
    _, status, usage = os.wait4(pid, 0)
    measured = {
        "exit_status": os.waitstatus_to_exitcode(status),
        "wall_s": time.monotonic() - began,
        "user_s": usage.ru_utime,
        "system_s": usage.ru_stime,
        "peak_rss_kib": usage.ru_maxrss,
    }
    with open(report, "w") as file:  # noqa: PTH123 -- pathlib would double this program's own size
        json.dump(measured, file)


main()
