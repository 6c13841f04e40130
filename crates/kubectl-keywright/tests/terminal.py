#!/usr/bin/env python3
"""Somebody in front of a terminal: terminal.py COLUMNS '[["prompt", "answer"], ...]' PROGRAM ARGUMENT...

Waits for each prompt and types its answer, as it stands: "\\r" is Enter, "\\u0003" Ctrl-C, "\\u0004" the end of the input.
After "\\u0000" it is the name of a signal for the program. What answers "" is typed before the program begins.
Prints all that is seen, and exits as the program does, which has to leave the terminal with its echo."""

import fcntl
import json
import os
import pty
import select
import signal
import struct
import sys
import termios
import time

columns, answers, command = int(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3:]
child, terminal = pty.fork()
if child == 0:
    fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    os.execvp(command[0], command)

seen, read_to, deadline = b"", 0, time.monotonic() + 50
while time.monotonic() < deadline:
    if answers:
        prompt, answer = answers[0]
        at = seen.find(prompt.encode(), read_to)
        if at >= 0:
            read_to = at + len(prompt.encode())
            # The program has written its prompt, and reads from now on at the latest.
            if prompt:
                time.sleep(0.2)
            if answer.startswith("\0"):
                os.kill(child, signal.Signals["SIG" + answer[1:]])
            else:
                os.write(terminal, answer.encode())
            answers.pop(0)
    if select.select([terminal], [], [], 0.1)[0]:
        try:
            chunk = os.read(terminal, 65536)
        except OSError:
            break
        if not chunk:
            break
        seen += chunk
sys.stdout.buffer.write(seen)
sys.stdout.flush()
if answers:
    sys.exit(f"never asked: {answers[0][0]}")
if not termios.tcgetattr(terminal)[3] & termios.ECHO:
    sys.exit("the terminal is left without echo")
code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
sys.exit(128 - code if code < 0 else code)
