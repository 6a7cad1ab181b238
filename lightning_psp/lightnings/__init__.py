"""What callbacks stand on: both packages that Lightning comes as, and telling the user each thing once.

In come the Lightnings that a program has imported; out come `AnyCallback`, a callback of each of them, `OnlyOne`, of
which a trainer takes one, and `OnceAFit`, which gives messages. Begin with `any_callback`.
"""

from lightning_psp.lightnings.any_callback import AnyCallback, refuse_other_lightning
from lightning_psp.lightnings.messages import OnceAFit
from lightning_psp.lightnings.only_one import OnlyOne

__all__ = ["AnyCallback", "OnceAFit", "OnlyOne", "refuse_other_lightning"]
