"""The command line's parser, whose errors are sentences."""

import re
import sys
from typing import NoReturn

from pytorch_lightning.cli import LightningArgumentParser


def sentence(message: str) -> str:
    """What is wrong, and in which key, out of a message in which jsonargparse says all that it tried."""
    message = re.sub(r"<class '([\w.]+)'>", r"\1", message)
    message = re.sub(r"\. Got value: Namespace\(.*\)$", "", message, flags=re.M)
    lines = [line.strip().removeprefix("- ").rstrip(":") for line in message.splitlines()]
    *outer, key = ["", *(line for line in lines if re.fullmatch(r"Parser key \S+", line))]
    noise = r"Does not validate|Subtypes|Errors$|Given value|Expected a NoneType"
    told = [line for line in lines if line and line not in outer and not re.match(noise, line)]
    return ": ".join(
        dict.fromkeys(line.removeprefix("Parser key ").strip('"') if line == key else line for line in told)
    )


class Parser(LightningArgumentParser):
    """Ends with one sentence, without the usage of two hundred options."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:
            super().error(message, ex)
        sys.stderr.write(f"Error: {sentence(message)}\n")
        self.exit(2)
