"""What can break. Bad input is a value (`records.Reason`); these are for a broken world.

Every error says whether trying again may help and which exit code the command line ends with.
"""


class MonitorError(Exception):
    """The root: something a person has to know, in one sentence."""

    exit_code = 70
    retriable = False


class UsageError(MonitorError):
    """The command or the configuration is wrong; `problems` holds every one of them, not the first."""

    exit_code = 2

    def __init__(self, message: str, problems: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.problems = problems


class InputError(MonitorError):
    """A file was found but cannot be used for what it was given."""

    exit_code = 3


class PeerError(MonitorError):
    """A broker or another service could not be reached, or refused us."""

    exit_code = 4
    retriable = True


class DataLossError(PeerError):
    """The offset we stand at is no longer in the topic."""

    retriable = False


class StateError(MonitorError):
    """The state file is damaged, too new for this program, or in use by another process."""

    exit_code = 5
