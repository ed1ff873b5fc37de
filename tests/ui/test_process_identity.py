from __future__ import annotations

import os
import signal
import subprocess
import sys

from qamdetr.ui.process_identity import process_identity


def test_identity_is_of_living_processes_only():
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    assert process_identity(os.getpid()) == process_identity(os.getpid()) != ""
    child.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert process_identity(child.pid) == ""  # a zombie: it has ended, but nobody has asked yet
    child.wait()
    assert process_identity(child.pid) == ""
