"""What a config names as an extension."""

from made_up.regression import WING
from made_up.slope import FAMILY

FAMILIES = (FAMILY,)
WINGS = (WING,)
