"""Errors that the user can mend.

Every command turns a `UserError` into exit code 2 and its message, without a
traceback.  A message names what is wrong and what to change.
"""


class UserError(Exception):
    """Something the user supplied is wrong; the message says what to change."""


class Interrupted(BaseException):
    """What is under way is to be left; like KeyboardInterrupt no `except Exception` holds it."""


class ConfigError(UserError):
    """A setting is unknown, of the wrong type, or inconsistent with another."""


class ModelError(UserError):
    """A model folder is missing, incomplete, misshapen or of an unsupported architecture."""


class TaskError(UserError):
    """A task cannot be loaded, has no problems, or raised while rendering or scoring."""


class ReflectionError(UserError):
    """The reflection model cannot be reached or refuses every request."""


class EngineError(UserError):
    """A served model cannot be reached, refuses what is asked, or answers what cannot be true."""


class RunError(UserError):
    """A run folder cannot be used: it belongs to another config, is damaged or not writable."""
