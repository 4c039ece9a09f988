"""AdamW over flat storage. The twin is ``mup_tune.train.optimizer.MemberAdamW``, which trains on CPUs."""

from mup_tune.model.kernels.adamw.norms import square_sums
from mup_tune.model.kernels.adamw.tiles import make_tiles
from mup_tune.model.kernels.adamw.update import adamw_

__all__ = ["adamw_", "make_tiles", "square_sums"]
