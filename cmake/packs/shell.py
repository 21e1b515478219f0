"""Commands."""

import shlex
import subprocess


class Failure(SystemExit):
    """Of a command; with what it said."""


def run(*command: object, text: str | None = None) -> str:
    """A command's output, given `text`; exits where it fails."""
    words = [str(word) for word in command]
    result = subprocess.run(words, text=True, capture_output=True, check=False, input=text)
    if result.returncode:
        raise Failure(f"{shlex.join(words)}\n{result.stdout}{result.stderr}")
    return result.stdout
