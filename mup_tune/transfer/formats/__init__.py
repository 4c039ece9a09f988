"""The formats of an export. A module here that defines a :class:`.format.Format` adds one."""

from mup_tune.registry import import_modules

import_modules(__name__, __path__)
