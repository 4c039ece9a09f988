"""The stage kinds a plan can name, one file each. A file here that defines a :class:`Stage` adds a kind."""

from mup_tune.registry import import_modules

import_modules(__name__, __path__)
